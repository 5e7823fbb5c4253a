-- A serial number is unique for its issuer only (RFC 5280, 4.1.2.2), so whatever
-- named a certificate by its serial alone names its issuer too.

-- The authority that a manufacturer's certificate leads to, where its issuer is a CA
-- below that one; empty: the issuer is itself an authority on record.
ALTER TABLE certificate ADD COLUMN anchor {{text}} NOT NULL DEFAULT '';

-- Of a manufacturer's certificate: the fingerprints of the CAs above it, the anchor
-- last, with blanks between them. It is validated anew by them without the device.
ALTER TABLE certificate ADD COLUMN path {{text}} NOT NULL DEFAULT '';

CREATE TABLE issuer_certificate (
	fingerprint {{text}} PRIMARY KEY, -- hex SHA-256 of der
	der         {{bytes}} NOT NULL
);

ALTER TABLE certificate ADD COLUMN predecessor_issuer {{text}} NOT NULL DEFAULT '';
UPDATE certificate SET predecessor_issuer = COALESCE((SELECT min(p.issuer) FROM certificate p
		WHERE p.serial = certificate.predecessor AND p.device = certificate.device), '')
	WHERE predecessor <> '';

-- The source certificate:<serial> becomes certificate:<issuer>/<serial>.
UPDATE access_token SET source = COALESCE((SELECT min('certificate:' || c.issuer || '/' || c.serial) FROM certificate c
		WHERE c.serial = substr(access_token.source, 13) AND c.device = access_token.subject), source)
	WHERE source LIKE 'certificate:%';

-- Counts the changes of an authority, so that a node sees that what it has in memory is old.
ALTER TABLE authority ADD COLUMN version BIGINT NOT NULL DEFAULT 0;
