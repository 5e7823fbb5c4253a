-- By what old sessions are forgotten, and by what those are found that rest on a
-- credential which was stopped.
CREATE INDEX broker_session_since ON broker_session (since);
CREATE INDEX broker_session_end ON broker_session (not_after);
CREATE INDEX broker_session_credential ON broker_session (credential, since);

-- 1: the broker named no client when it asked who may connect, as RabbitMQ does for a
-- certificate, so that questions which name one are about this session too.
ALTER TABLE broker_session ADD COLUMN unnamed BIGINT NOT NULL DEFAULT 0;
