-- Blocks of addresses, those of the ledger and those of operators. A row outlives
-- its end, so that the next block of the address is longer.
CREATE TABLE address_block (
	prefix     {{text}} PRIMARY KEY,
	manual     BOOLEAN NOT NULL,
	reason     {{text}} NOT NULL,
	failures   BIGINT NOT NULL,
	strikes    BIGINT NOT NULL,
	began_at   BIGINT NOT NULL,
	ends_at    BIGINT NOT NULL,
	changed_at BIGINT NOT NULL -- by this other nodes find what is new
);
CREATE INDEX address_block_by_end ON address_block (ends_at);
CREATE INDEX address_block_by_change ON address_block (changed_at);

-- Counts of failures, written behind; a lost row is a few failures forgiven.
CREATE TABLE failure_count (
	kind     {{text}} NOT NULL, -- address, credential, device
	name     {{text}} NOT NULL,
	failures BIGINT NOT NULL,
	began_at BIGINT NOT NULL,
	PRIMARY KEY (kind, name)
);
CREATE INDEX failure_count_by_time ON failure_count (kind, began_at);
