-- The newest sealed event, outside of the log's own rows and written by the
-- transaction that seals: rows that are taken from the end of the log leave it
-- behind. One row, named log; none before the first event is sealed.
CREATE TABLE event_head (
	name {{text}} PRIMARY KEY,
	seq  BIGINT NOT NULL,
	hash {{bytes}} NOT NULL,
	id   BIGINT NOT NULL
);
INSERT INTO event_head (name, seq, hash, id)
	SELECT 'log', seq, hash, id FROM event WHERE seq IS NOT NULL AND hash IS NOT NULL ORDER BY seq DESC LIMIT 1;
