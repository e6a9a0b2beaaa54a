-- The same tables as on Postgres; ids are text (36 characters, lower case), which sorts as the id does.
CREATE TABLE documents (
    id         TEXT    PRIMARY KEY NOT NULL,
    tenant     TEXT    NOT NULL,
    title      TEXT    NOT NULL,
    text       TEXT    NOT NULL,
    created_at INTEGER NOT NULL
) STRICT;

CREATE TABLE passages (
    seq      INTEGER PRIMARY KEY,
    document TEXT    NOT NULL REFERENCES documents (id) ON DELETE CASCADE,
    ordinal  INTEGER NOT NULL,
    tenant   TEXT    NOT NULL,
    text     TEXT    NOT NULL,
    terms    TEXT    NOT NULL,
    UNIQUE (document, ordinal)
) STRICT;

-- `terms` are ASCII words made by the gateway; the tokenizer only splits them at the spaces.
CREATE VIRTUAL TABLE passages_terms USING fts5 (terms, content = 'passages', content_rowid = 'seq', tokenize = 'ascii');
CREATE TRIGGER passages_added AFTER INSERT ON passages BEGIN
    INSERT INTO passages_terms (rowid, terms) VALUES (new.seq, new.terms);
END;
CREATE TRIGGER passages_deleted AFTER DELETE ON passages BEGIN
    INSERT INTO passages_terms (passages_terms, rowid, terms) VALUES ('delete', old.seq, old.terms);
END;

CREATE TABLE queries (
    id         TEXT    PRIMARY KEY NOT NULL,
    tenant     TEXT    NOT NULL,
    status     TEXT    NOT NULL,
    created_at INTEGER NOT NULL,
    document   TEXT    NOT NULL
) STRICT;
CREATE INDEX queries_newest ON queries (tenant, created_at DESC, id DESC);

CREATE TABLE api_keys (
    id         TEXT    PRIMARY KEY NOT NULL,
    tenant     TEXT    NOT NULL,
    hash       TEXT    NOT NULL UNIQUE,
    prefix     TEXT    NOT NULL,
    created_at INTEGER NOT NULL,
    revoked_at INTEGER
) STRICT;
