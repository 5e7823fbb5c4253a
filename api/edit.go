package api

import "time"

// EditDevice changes a device: a JSON merge patch (RFC 7396). A field that is absent
// stays as it is, null or an empty text clears it.
type EditDevice struct {
	Owner   *string            `json:"owner,omitempty" maxLength:"200" nullable:"true" doc:"Person or team that answers for it."`
	Purpose *string            `json:"purpose,omitempty" maxLength:"200" nullable:"true" doc:"What it is for."`
	Fleet   *string            `json:"fleet,omitempty" minLength:"1" maxLength:"63" doc:"Moves it: its sessions end, and its certificate follows the new fleet from its next renewal on."`
	Tags    map[string]*string `json:"tags,omitempty" maxProperties:"128" doc:"Tags to set; null removes one. Tags that are absent stay."`
}

// EditedDevice is a device after a change.
type EditedDevice struct {
	Device
	Changed  map[string]string `json:"changed,omitempty" doc:"What changed: each value by name, and what it was as <name>_before; a tag is named tag.<name>. Absent: nothing did."`
	Sessions int               `json:"sessions" doc:"Live sessions of the answering node that ended because it was moved."`
}

// Disconnected says which live sessions were ended. What they rest on is as good as it was.
type Disconnected struct {
	Device    string    `json:"device,omitempty"`
	Session   string    `json:"session,omitempty"`
	At        time.Time `json:"at" doc:"When it was on durable record; the other nodes end theirs then."`
	Sessions  int       `json:"sessions" doc:"Live sessions of the answering node that were closed."`
	CutMicros int64     `json:"cut_micros" doc:"Microseconds from the durable record to the last socket closed."`
}
