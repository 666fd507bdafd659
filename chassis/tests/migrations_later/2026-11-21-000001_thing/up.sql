CREATE TABLE thing (
    name TEXT PRIMARY KEY,
    payload BYTEA NOT NULL
);
