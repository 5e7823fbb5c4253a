-- What shows, at each start, that a node has the keys of this database. A database
-- from before gets its rows at the first start of a program that knows them.
CREATE TABLE key_check (
	name    {{text}} PRIMARY KEY, -- seal, or seal/purpose of a key that is derived from it
	kind    {{text}} NOT NULL,    -- how value is derived: hkdf-sha256
	value   {{bytes}} NOT NULL,
	made_at BIGINT NOT NULL
);

-- The nodes that keep the last state that they saw beside their keys. One that is
-- here and has no such file lost it.
CREATE TABLE watermark (
	node  {{text}} PRIMARY KEY, -- host and data folder
	since BIGINT NOT NULL
);
