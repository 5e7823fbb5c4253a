package audit

import (
	"crypto/rand"
	"encoding/hex"
	"strings"
	"time"

	"github.com/countersign-iot/countersign"
)

const (
	// maxRuns is how many runs are kept: a quarter of a year of daily ones.
	maxRuns = 90
)

// State is the state of a run. The words are those of AWS IoT Device Defender.
type State string

// The states of a run.
const (
	InProgress State = "IN_PROGRESS"
	Completed  State = "COMPLETED"
	Failed     State = "FAILED"
	Canceled   State = "CANCELED"
)

// Status is the state of one check of a run, in the same words.
type Status string

// The statuses of a check.
const (
	Waiting       Status = "WAITING_FOR_DATA_COLLECTION" // its turn has not come
	CheckRunning  Status = "IN_PROGRESS"
	Compliant     Status = "COMPLETED_COMPLIANT"
	NonCompliant  Status = "COMPLETED_NON_COMPLIANT"
	CheckFailed   Status = "FAILED"
	CheckCanceled Status = "CANCELED"
)

// Latest in place of an id is the newest run.
const Latest = "latest"

// Run is one audit.
type Run struct {
	ID        string
	State     State
	Reason    string // why it failed or was canceled
	Scheduled bool
	StartedBy countersign.Actor
	Via       string
	Node      string
	StartedAt time.Time
	EndedAt   time.Time // zero while it runs
	Checks    []Result  // by name; empty in a list
}

// Result is what one check of a run came to.
type Result struct {
	Name         string
	Status       Status
	Severity     countersign.Severity // of the worst finding; empty without one
	Looked       int64                // rows that it looked at
	NonCompliant int64                // findings, suppressed ones apart
	Suppressed   int64
	Kept         int64  // of both, on record; at most maxFindings
	Error        string // why it failed
}

// Finding is one thing that a check found.
type Finding struct {
	ID         string
	Run        string
	Check      string
	Reason     string // reason code
	Severity   countersign.Severity
	Subject    string // device:<id>, authority:<id>, credential:<id>, operator_token:<id>, fleet:<name>, server
	Device     string
	Fleet      string
	Cert       countersign.CertRef
	Summary    string            // one sentence
	Evidence   map[string]string // what it rests on
	Suppressed string            // id of the suppression; empty if none
	At         time.Time
}

// newID sorts by time.
func newID(now time.Time) string {
	var b [2]byte
	_, _ = rand.Read(b[:]) // never fails: crypto/rand ends the program instead
	return strings.Replace(now.UTC().Format("20060102-150405.000-"), ".", "", 1) + hex.EncodeToString(b[:])
}

// Severity is that of the worst finding; empty without one.
func (r *Run) Severity() (worst countersign.Severity) {
	for _, c := range r.Checks {
		if c.Severity.Rank() > worst.Rank() {
			worst = c.Severity
		}
	}
	return worst
}
