-- Device ids that differ in letter case only are refused, since people and
-- services that ignore case take them for one. Where a database has such ids
-- already, one of them is in the index and the others are left alone.

ALTER TABLE device ADD COLUMN folded {{text}};
UPDATE device SET folded = lower(id) WHERE id IN (SELECT min(id) FROM device GROUP BY lower(id));
CREATE UNIQUE INDEX device_by_fold ON device (folded);

-- What a credential was made with, as kind:id, where it ends with that.
ALTER TABLE credential ADD COLUMN source {{text}} NOT NULL DEFAULT '';
CREATE INDEX credential_by_source ON credential (source) WHERE source <> '' AND state = 'active';
