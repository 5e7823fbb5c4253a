package api

import "time"

// Policy is what the clients of a fleet may do: one version of it.
type Policy struct {
	Fleet     string          `json:"fleet"`
	Version   int64           `json:"version" doc:"0: the built-in policy."`
	Note      string          `json:"note,omitempty"`
	By        string          `json:"by,omitempty" doc:"Who applied it."`
	AppliedAt time.Time       `json:"applied_at,omitzero"`
	Source    string          `json:"source,omitempty" doc:"The document; absent in lists."`
	Warnings  []PolicyWarning `json:"warnings,omitempty" doc:"What is unwise in it; absent in lists."`
}

// PolicySource is a draft.
type PolicySource struct {
	Source string `json:"source" minLength:"1" maxLength:"65536" doc:"The document, YAML or JSON."`
}

// PolicyCheck is what there is to say of a draft.
type PolicyCheck struct {
	OK       bool            `json:"ok" doc:"It can be applied: no problems, no failures."`
	Problems []PolicyProblem `json:"problems,omitempty" doc:"Why it cannot be read."`
	Warnings []PolicyWarning `json:"warnings,omitempty"`
	Failures []PolicyFailure `json:"failures,omitempty" doc:"Where its own tests do not hold."`
}

// PolicyProblem says where a document is wrong.
type PolicyProblem struct {
	Line    int    `json:"line,omitempty"`
	Column  int    `json:"column,omitempty"`
	Message string `json:"message"`
}

// PolicyWarning is something well formed and perhaps unwise.
type PolicyWarning struct {
	Code      string `json:"code" doc:"Such as publish_unbound; docs/policy.md lists them."`
	Check     string `json:"check,omitempty" doc:"The audit check that it belongs to."`
	Severity  string `json:"severity"`
	Statement string `json:"statement,omitempty"`
	Line      int    `json:"line,omitempty"`
	Column    int    `json:"column,omitempty"`
	Message   string `json:"message"`
}

// PolicyFailure is an act for which a test does not hold.
type PolicyFailure struct {
	Test     string         `json:"test"`
	Line     int            `json:"line"`
	Act      string         `json:"act"`
	Want     string         `json:"want" enum:"allow,deny"`
	Decision PolicyDecision `json:"decision"`
}

// PolicyDecision is the answer to one question, with what it rests on.
type PolicyDecision struct {
	Allowed   bool   `json:"allowed"`
	Statement string `json:"statement,omitempty" doc:"The one that decided; absent: none did, which denies."`
	Line      int    `json:"line,omitempty"`
	Pattern   string `json:"pattern,omitempty" doc:"The topic or client of it, as it is written."`
	As        string `json:"as,omitempty" doc:"What that came to for the client."`
	Why       string `json:"why"`
}

// PolicyQuestion asks what a client may do, by its record as it is now.
type PolicyQuestion struct {
	Fleet    string   `json:"fleet,omitempty" maxLength:"63" doc:"Of a guest or an app; a device has its own."`
	Device   string   `json:"device,omitempty" maxLength:"128" doc:"One of device, guest and app."`
	Guest    string   `json:"guest,omitempty" maxLength:"128"`
	App      string   `json:"app,omitempty" maxLength:"128" doc:"Name of an operator."`
	Scope    []string `json:"scope,omitempty" maxItems:"100" doc:"Devices that the app's session is for."`
	ClientID string   `json:"client_id,omitempty" maxLength:"1024" doc:"Absent: the client's own name."`
	Action   string   `json:"action" enum:"connect,publish,subscribe,receive,retain"`
	Topic    string   `json:"topic,omitempty" maxLength:"65535" doc:"A topic, a filter for subscribe, a client identifier for connect."`
	Source   string   `json:"source,omitempty" maxLength:"65536" doc:"A draft; absent: the policy in force."`
}

// PolicyAnswer is the answer.
type PolicyAnswer struct {
	Fleet    string         `json:"fleet"`
	Version  int64          `json:"version" doc:"0: built in; -1: the draft."`
	Decision PolicyDecision `json:"decision"`
}

// ApplyPolicy puts a draft in force.
type ApplyPolicy struct {
	PolicySource
	Note   string `json:"note,omitempty" maxLength:"400"`
	Expect *int64 `json:"expect,omitempty" minimum:"0" doc:"The version that it replaces; refused where another is in force."`
}

// RollbackPolicy puts an older version in force, as a new one.
type RollbackPolicy struct {
	To     int64  `json:"to" minimum:"0" doc:"0: the built-in policy."`
	Note   string `json:"note,omitempty" maxLength:"400"`
	Expect *int64 `json:"expect,omitempty" minimum:"0"`
}

// AppliedPolicy is what an application led to.
type AppliedPolicy struct {
	Policy
	Changed  bool `json:"changed" doc:"False: the same document was in force already."`
	Sessions int  `json:"sessions" doc:"Live sessions on this node that lose something; they are being cut, up to 1,000 a second. Other nodes cut theirs."`
}

// PolicyReplay is what a draft would have decided of late.
type PolicyReplay struct {
	Acts       int               `json:"acts" doc:"Different acts in the sample."`
	Since      time.Time         `json:"since,omitzero" doc:"When the oldest of them was decided."`
	NowDenied  int               `json:"now_denied"`
	NowAllowed int               `json:"now_allowed"`
	Changes    []ReplayedAct     `json:"changes" doc:"Up to 500, newest first."`
	Sessions   int               `json:"sessions" doc:"Live sessions on this node that would be cut."`
	Statements []PolicyStatement `json:"statements,omitempty" doc:"How the draft differs from what is in force."`
}

// ReplayedAct is an act on which the draft decides otherwise.
type ReplayedAct struct {
	Device   string         `json:"device"`
	ClientID string         `json:"client_id,omitempty"`
	Action   string         `json:"action"`
	Topic    string         `json:"topic"`
	Was      bool           `json:"was" doc:"It was allowed."`
	At       time.Time      `json:"at" doc:"When it was decided last."`
	Times    int            `json:"times" doc:"As often as it is in the sample."`
	Decision PolicyDecision `json:"decision"`
}

// PolicyStatement is how a statement differs from that of another document.
type PolicyStatement struct {
	ID    string   `json:"id"`
	What  string   `json:"what" enum:"added,removed,changed"`
	Lines []string `json:"lines" doc:"Each begins with + or -."`
}
