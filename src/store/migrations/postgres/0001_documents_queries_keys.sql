-- Documents as they were handed in, and the passages that a search finds.
CREATE TABLE documents (
    id         uuid   PRIMARY KEY,
    tenant     text   NOT NULL,
    title      text   NOT NULL,
    text       text   NOT NULL,
    created_at bigint NOT NULL
);

-- `terms` are made by the gateway (ASCII words, one space between), so that both databases index the same words:
-- no configuration of Postgres' own text search takes part.
CREATE TABLE passages (
    document uuid     NOT NULL REFERENCES documents (id) ON DELETE CASCADE,
    ordinal  integer  NOT NULL,
    tenant   text     NOT NULL,
    text     text     NOT NULL,
    terms    text     NOT NULL,
    vector   tsvector NOT NULL GENERATED ALWAYS AS (terms::tsvector) STORED,
    PRIMARY KEY (document, ordinal)
);
CREATE INDEX passages_vector ON passages USING gin (vector);

-- `document` is the answer as it was sent; `json`, not `jsonb`, keeps its bytes.
CREATE TABLE queries (
    id         uuid   PRIMARY KEY,
    tenant     text   NOT NULL,
    status     text   NOT NULL,
    created_at bigint NOT NULL,
    document   json   NOT NULL
);
CREATE INDEX queries_newest ON queries (tenant, created_at DESC, id DESC);

CREATE TABLE api_keys (
    id         uuid   PRIMARY KEY,
    tenant     text   NOT NULL,
    hash       text   NOT NULL UNIQUE,
    prefix     text   NOT NULL,
    created_at bigint NOT NULL,
    revoked_at bigint
);
