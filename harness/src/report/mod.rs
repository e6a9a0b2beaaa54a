//! Reports: HTML, JUnit, JSON, Markdown.
