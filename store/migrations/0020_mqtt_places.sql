-- Places of a queue up to this one may have been used, on record or not: packet identifiers
-- follow from them, and one that a client may have kept is not to be used again soon.
ALTER TABLE mqtt_session ADD COLUMN place BIGINT NOT NULL DEFAULT 0;
