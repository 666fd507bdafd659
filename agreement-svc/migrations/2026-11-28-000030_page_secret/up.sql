-- The secret that authenticates page tokens: one row, which the first process makes when it starts.
CREATE TABLE page_secret (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    secret TEXT NOT NULL
);
