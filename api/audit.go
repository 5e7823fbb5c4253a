package api

import "time"

// AuditCheck describes a check.
type AuditCheck struct {
	Name     string   `json:"name" doc:"As AWS IoT Device Defender calls it, where it has the check."`
	Severity string   `json:"severity" enum:"info,low,medium,high,critical" doc:"Of its findings, unless one has its own."`
	Title    string   `json:"title"`
	Why      string   `json:"why" doc:"Why it matters."`
	Fix      string   `json:"fix" doc:"What to do about a finding."`
	Setting  string   `json:"setting,omitempty" doc:"The fleet's threshold, as a path in its rules."`
	Default  string   `json:"default,omitempty" doc:"Of that threshold."`
	Reasons  []string `json:"reasons" doc:"Reason codes of its findings."`
	Defender bool     `json:"defender" doc:"AWS IoT Device Defender has the check, by this name."`
	Risks    []string `json:"risks,omitempty" doc:"Entries of the OWASP Non-Human Identities Top 10 of 2025."`
}

// AuditRun is one audit.
type AuditRun struct {
	ID        string        `json:"id"`
	State     string        `json:"state" enum:"IN_PROGRESS,COMPLETED,FAILED,CANCELED"`
	Reason    string        `json:"reason,omitempty" doc:"Why it failed or was canceled."`
	Scheduled bool          `json:"scheduled,omitempty"`
	StartedBy string        `json:"started_by"`
	Node      string        `json:"node,omitempty" doc:"The server that runs it."`
	StartedAt time.Time     `json:"started_at"`
	EndedAt   time.Time     `json:"ended_at,omitzero"`
	Done      int           `json:"done" doc:"Checks that have ended."`
	Looked    int64         `json:"looked" doc:"Rows that were looked at so far."`
	Findings  int64         `json:"findings" doc:"Suppressed ones apart."`
	Severity  string        `json:"severity,omitempty" doc:"Of the worst finding."`
	Checks    []AuditResult `json:"checks"`
}

// AuditResult is what one check of an audit came to.
type AuditResult struct {
	Name         string `json:"name"`
	Status       string `json:"status" enum:"WAITING_FOR_DATA_COLLECTION,IN_PROGRESS,COMPLETED_COMPLIANT,COMPLETED_NON_COMPLIANT,FAILED,CANCELED"`
	Severity     string `json:"severity,omitempty" doc:"Of the worst finding."`
	Looked       int64  `json:"looked" doc:"Rows that it looked at."`
	NonCompliant int64  `json:"non_compliant" doc:"Findings, suppressed ones apart."`
	Suppressed   int64  `json:"suppressed" doc:"Findings that are left alone on purpose."`
	Kept         int64  `json:"kept" doc:"Findings on record; the first 1000, all are counted."`
	Error        string `json:"error,omitempty"`
}

// NewAudit asks for an audit.
type NewAudit struct {
	Checks []string `json:"checks,omitempty" maxItems:"100" doc:"Names of checks; absent: all."`
}

// AuditFinding is one thing that a check found.
type AuditFinding struct {
	ID         string            `json:"id"`
	Run        string            `json:"run"`
	Check      string            `json:"check"`
	Reason     string            `json:"reason" doc:"Reason code."`
	Severity   string            `json:"severity" enum:"info,low,medium,high,critical"`
	Subject    string            `json:"subject" doc:"device:<id>, authority:<id>, credential:<id>, operator_token:<id>, fleet:<name> or server."`
	Device     string            `json:"device,omitempty"`
	Fleet      string            `json:"fleet,omitempty"`
	Issuer     string            `json:"issuer,omitempty"`
	Serial     string            `json:"serial,omitempty"`
	Summary    string            `json:"summary"`
	Evidence   map[string]string `json:"evidence,omitempty"`
	Suppressed string            `json:"suppressed,omitempty" doc:"The suppression that covers it."`
	At         time.Time         `json:"at"`
}

// AuditFindingFilter narrows a list of findings.
type AuditFindingFilter struct {
	Check       string `query:"check" maxLength:"100"`
	MinSeverity string `query:"min_severity" enum:"info,low,medium,high,critical" doc:"This one and worse ones."`
	Fleet       string `query:"fleet" maxLength:"63"`
	Device      string `query:"device" maxLength:"128"`
	Suppressed  string `query:"suppressed" enum:"yes,no" doc:"yes: those that are suppressed too."`
}

// AuditSuppression leaves findings alone for a time.
type AuditSuppression struct {
	ID        string    `json:"id"`
	Check     string    `json:"check"`
	Subject   string    `json:"subject" doc:"Of the findings, or fleet:<name> of their fleet; * matches any text."`
	Reason    string    `json:"reason"`
	CreatedBy string    `json:"created_by"`
	CreatedAt time.Time `json:"created_at"`
	EndsAt    time.Time `json:"ends_at"`
}

// NewAuditSuppression asks for an AuditSuppression.
type NewAuditSuppression struct {
	Check   string    `json:"check" minLength:"1" maxLength:"100"`
	Subject string    `json:"subject" minLength:"1" maxLength:"200"`
	Reason  string    `json:"reason" minLength:"1" maxLength:"500"`
	EndsAt  time.Time `json:"ends_at" doc:"At most 366 days from now."`
}

// AuditTrend is what one check came to over the last audits.
type AuditTrend struct {
	Check  string            `json:"check"`
	Points []AuditTrendPoint `json:"points" doc:"Oldest first."`
}

// AuditTrendPoint is one audit in an AuditTrend.
type AuditTrendPoint struct {
	Run          string    `json:"run"`
	At           time.Time `json:"at"`
	Status       string    `json:"status"`
	NonCompliant int64     `json:"non_compliant"`
	Suppressed   int64     `json:"suppressed"`
}
