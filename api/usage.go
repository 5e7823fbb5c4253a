package api

// Usage is what one device uses of the node that answers, and of the store of messages
// behind it.
type Usage struct {
	Device         string `json:"device" doc:"Or guest/<x>, operator/<name>."`
	Octets         int64  `json:"octets" doc:"What is stored: retained and queued messages."`
	Retained       int    `json:"retained" doc:"Retained messages that it sent."`
	RetainedOctets int64  `json:"retained_octets"`
	Queued         int    `json:"queued" doc:"Messages that wait for it."`
	QueuedOctets   int64  `json:"queued_octets"`
	Subscriptions  int    `json:"subscriptions" doc:"Topic filters of its live and kept sessions."`
	Sessions       int    `json:"sessions" doc:"Live sessions."`
	Kept           int    `json:"kept" doc:"Sessions that wait for their client."`
}

// UsageFilter narrows a list of Usage.
type UsageFilter struct {
	Device string `query:"device" maxLength:"160" doc:"Only this one."`
}

// Purge asks to drop what is stored for a device. Its live sessions go on.
type Purge struct {
	Retained bool   `json:"retained,omitempty" doc:"Retained messages that it sent."`
	Queued   bool   `json:"queued,omitempty" doc:"Messages that wait for it."`
	Sessions bool   `json:"sessions,omitempty" doc:"Sessions that wait for their client, with their subscriptions and queues."`
	Note     string `json:"note,omitempty" maxLength:"500" doc:"Why, in your words."`
}

// Purged is what a purge dropped, as far as it was counted.
type Purged struct {
	Device         string `json:"device"`
	Retained       int    `json:"retained"`
	RetainedOctets int64  `json:"retained_octets"`
	Queued         int    `json:"queued"`
	QueuedOctets   int64  `json:"queued_octets"`
	Sessions       int    `json:"sessions"`
}
