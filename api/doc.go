// Package api holds the JSON shapes of the REST API, shared by packages rest and
// enroll, which serve them, and package sdk, which reads them. Beside the shapes it has
// the one table from error codes to HTTP, and what both doors make of a grant. Names are
// snake_case, times RFC 3339 in UTC, durations whole seconds unless the name says
// otherwise. A field may be added; one that is here keeps its name and meaning.
package api

import "time"

// Base is the path under which all resources live.
const Base = "/api/v1"

// The sizes of a page: enough for a screen by default, and at most what is
// quickly made and read.
const (
	DefaultLimit = 100
	MaxLimit     = 1000
)

// Page is one page of a list. Next is the cursor for the following one; empty on
// the last.
type Page[T any] struct {
	Items []T    `json:"items"`
	Next  string `json:"next,omitempty" doc:"Give this as after to get the next page; absent on the last page."`
}

// Paging asks for a page.
type Paging struct {
	Limit int    `query:"limit" minimum:"0" maximum:"1000" doc:"Most items on the page; 0 or absent means 100."`
	After string `query:"after" maxLength:"512" doc:"The next of the page before."`
}

// Endpoints is where a running server is reached. The server writes it to
// endpoints.json in its data folder once all its listeners accept. A listener
// that is off is empty.
type Endpoints struct {
	Enroll    string            `json:"enroll" doc:"https URL of EST and REST enrollment"`
	Recovery  string            `json:"recovery,omitempty" doc:"https URL where expired certificates renew"`
	MQTT      string            `json:"mqtt" doc:"mqtts URL"`
	WebSocket string            `json:"websocket,omitempty" doc:"wss URL of MQTT for browsers"`
	Hook      string            `json:"hook,omitempty" doc:"URL where brokers and proxies of others ask"`
	API       string            `json:"api" doc:"URL of this API, without /api/v1"`
	Status    string            `json:"status" doc:"http URL of CRLs, OCSP and authorities"`
	Tunnels   map[string]string `json:"tunnels,omitempty" doc:"tls URL of each tunnel, by name"`
	Roots     string            `json:"roots" doc:"path of a PEM file with the roots"`
	Socket    string            `json:"socket" doc:"path of the local operators' Unix socket"`
}

// EndpointsFile is the name of the file that holds Endpoints.
const EndpointsFile = "endpoints.json"

// Health reports whether the server does its work.
type Health struct {
	Status string `json:"status" enum:"ok,degraded,failing" doc:"The worst of the checks that doctor lists."`
}

// The levels of a Check.
const (
	LevelOK   = "ok"
	LevelWarn = "warn"
	LevelFail = "fail"
)

// The states of Health.
const (
	HealthOK       = "ok"
	HealthDegraded = "degraded"
	HealthFailing  = "failing"
)

// Check is one thing that was looked at.
type Check struct {
	Name    string `json:"name"`
	Level   string `json:"level" enum:"ok,warn,fail"`
	Message string `json:"message"`
	Fix     string `json:"fix,omitempty" doc:"What to do about it."`
}

// Doctor is the result of all checks.
type Doctor struct {
	Checks []Check `json:"checks"`
}

// Version says what runs.
type Version struct {
	Version   string    `json:"version" doc:"Release, or devel."`
	Revision  string    `json:"revision,omitempty" doc:"Commit that it was built from."`
	Modified  bool      `json:"modified,omitempty" doc:"The commit had local changes."`
	Go        string    `json:"go" doc:"Version of Go."`
	StartedAt time.Time `json:"started_at,omitzero"`
}
