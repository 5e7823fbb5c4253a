-- What a device is for, in the words of those who run it.
ALTER TABLE device ADD COLUMN purpose {{text}} NOT NULL DEFAULT '';
