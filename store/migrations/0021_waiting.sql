-- Each request that begins to wait counts those of its evidence that wait already.
CREATE INDEX waiting_enrollment_by_evidence ON waiting_enrollment (evidence, expires_at) WHERE state = 'waiting';
