-- By what old sessions are forgotten, and by what those are found that rest on a
-- credential which was stopped.
CREATE INDEX broker_session_since ON broker_session (since);
CREATE INDEX broker_session_end ON broker_session (not_after);
CREATE INDEX broker_session_credential ON broker_session (credential, since);
