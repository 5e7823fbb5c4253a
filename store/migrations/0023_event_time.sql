-- When the newest event of each 2048 ids happened, written with the seal: a list of events
-- since a time begins with the first ids that have one, and does not read those before.
-- Times are not in the order of ids, because clocks differ and are set back.
CREATE TABLE event_time (
	block  BIGINT PRIMARY KEY, -- id / 2048
	newest BIGINT NOT NULL
);
INSERT INTO event_time (block, newest) SELECT id / 2048, max(at) FROM event WHERE seq IS NOT NULL GROUP BY id / 2048;
