-- A row of mqtt_queue is a page: messages of one session that were recorded in one
-- transaction. Its columns have the first one, more has those behind it. octets is what
-- all of them count for.
ALTER TABLE mqtt_queue ADD COLUMN upto BIGINT NOT NULL DEFAULT 0; -- seq of the last one
ALTER TABLE mqtt_queue ADD COLUMN n BIGINT NOT NULL DEFAULT 1;    -- how many they are
ALTER TABLE mqtt_queue ADD COLUMN more {{bytes}};
UPDATE mqtt_queue SET upto = seq;

-- What has happened to messages of pages that are still there.
CREATE TABLE mqtt_mark (
	session BIGINT NOT NULL,
	seq     BIGINT NOT NULL, -- 0: of all up to upto
	upto    BIGINT NOT NULL,
	gone    BIGINT NOT NULL, -- 1: they have ended; 0: PUBREC came, PUBREL is due
	PRIMARY KEY (session, seq)
){{clustered}};
INSERT INTO mqtt_mark (session, seq, upto, gone) SELECT session, seq, seq, 0 FROM mqtt_queue WHERE released = 1;
ALTER TABLE mqtt_queue DROP COLUMN released;
