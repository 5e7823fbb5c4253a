-- A revocation list is kept in parts, so that a revocation writes one of them and not the
-- whole list: what is before its entries, chunks of entries, and what is behind them.
ALTER TABLE crl ADD COLUMN head {{bytes}}; -- all octets of a list from before this version
ALTER TABLE crl ADD COLUMN size BIGINT NOT NULL DEFAULT 0; -- octets
ALTER TABLE crl ADD COLUMN tail {{bytes}};
ALTER TABLE crl ADD COLUMN chunks {{bytes}}; -- the ids of the chunks in their order, 8 octets each
UPDATE crl SET head = der, size = length(der);
ALTER TABLE crl DROP COLUMN der;

-- A chunk is never changed: another one takes its place.
CREATE TABLE crl_chunk (
	id     BIGINT PRIMARY KEY, -- random
	issuer {{text}} NOT NULL,
	shard  INTEGER NOT NULL,
	number BIGINT NOT NULL, -- of the list that it was made for
	n      BIGINT NOT NULL, -- entries
	der    {{bytes}} NOT NULL
);

-- Certificates that were revoked, held or released since the list that shows them as
-- they are was published. One that is there twice, or in vain, does no harm.
CREATE TABLE crl_change (
	id     {{identity}},
	issuer {{text}} NOT NULL,
	shard  INTEGER NOT NULL,
	serial {{text}} NOT NULL
);
CREATE INDEX crl_change_by_list ON crl_change (issuer, shard, id);

-- A list that is made anew reads these columns of the certificates on it, and no more.
DROP INDEX certificate_withdrawn;
CREATE INDEX certificate_withdrawn ON certificate (issuer, shard, not_after, serial, reason, revoked_at) WHERE state IN ('revoked', 'held');
