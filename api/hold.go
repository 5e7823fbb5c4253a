package api

import "time"

// Hold is an emergency hold: an act on a device that could not be recorded, and that is
// in force on the node that answers alone, until it can.
type Hold struct {
	ID     string    `json:"id"`
	Device string    `json:"device"`
	Act    string    `json:"act" enum:"revoke,suspend,retire" doc:"What is to be recorded."`
	By     string    `json:"by"`
	Note   string    `json:"note,omitempty"`
	At     time.Time `json:"at" doc:"When it was placed."`
	State  string    `json:"state" enum:"held,dropped,recorded" doc:"Held: the device is refused here. Dropped: it is not, which is yet to be recorded."`
	Tries  int       `json:"tries" doc:"Attempts to record it since the node started."`
	Error  string    `json:"error,omitempty" doc:"Why the last one failed."`
}
