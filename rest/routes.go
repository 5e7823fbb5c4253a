package rest

import (
	"net/http"
	"time"

	"github.com/countersign-iot/countersign/operator"
)

// route is one row of the table of routes.
type route struct {
	name    string       // method, and path below api.Base
	act     operator.Act // the right that its caller needs; "": it is closed to all
	summary string
	handle  handler
}

// group is routes about one thing, which OpenAPI shows under one tag.
type group struct {
	tag    string
	routes []route
}

// The routes that may take long.
const (
	// verifyTimeout bounds the walk over the whole log, at some 100,000 events a second.
	verifyTimeout = 110 * time.Second
	// runTimeout bounds one run of a factory: 100,000 items at a slow 10 a second, and a pause.
	runTimeout = 4 * time.Hour
)

// routes returns the table of all that this door serves. Each handler is of a small type
// that has what it needs and no more.
func (s *Server) routes() []group {
	return []group{
		{"Server", s.serverRoutes()},
		{"Devices", s.deviceRoutes()},
		{"Secrets", s.secretRoutes()},
		{"Blocks", s.blockRoutes()},
		{"Holds", s.holdRoutes()},
		{"Alerts", s.alertRoutes()},
		{"Access tokens", s.accessTokenRoutes()},
		{"Certificates", s.certificateRoutes()},
		{"Log", s.logRoutes()},
		{"Audit", s.auditRoutes()},
		{"Setup", s.setupRoutes()},
		{"Policies", s.policyRoutes()},
		{"Credentials", s.credentialRoutes()},
		{"Enrollments", s.enrollmentRoutes()},
		{"Factory", s.factoryRoutes()},
	}
}

func (s *Server) serverRoutes() []route {
	d := &doctor{
		registry: s.Registry, events: s.Events, ra: s.RA, ca: s.CA, alerts: s.Alerts, more: s.Checks,
		offline: s.Offline, now: s.Now, log: s.Log, started: s.Now(),
	}
	return []route{
		{"GET /health", operator.Anyone, "Report whether the server does its work", on(d.health)},
		{"GET /version", operator.Read, "Get what runs", on(d.version)},
		{"GET /doctor", operator.Read, "Have the server check itself", on(d.report)},
	}
}

func (s *Server) deviceRoutes() []route {
	d := &devices{s.Registry, s.RA, s.Provisioner, s.CA}
	l := &eventLog{s.Events, s.Registry}
	live := &sessions{s.Sessions, s.Provisioner}
	return []route{
		{"GET /devices", operator.Read, "List devices by id", on(d.list)},
		{"POST /devices", operator.Register, "Register a device before it enrolls", creates(d.create)},
		{"GET /devices/{id}", operator.Read, "Get a device", on(d.get)},
		// Tags and fleet decide what an active device may do.
		{"PATCH /devices/{id}", operator.Revoke, "Change owner, purpose, tags or fleet of a device (RFC 7396)", on(d.edit)},
		{"GET /devices/{id}/events", operator.Read, "List the events of a device", on(l.listOfDevice)},
		{"POST /devices/{id}/suspend", operator.Suspend, "Put a device on hold and cut its sessions", on(d.suspend)},
		{"POST /devices/{id}/reactivate", operator.Suspend, "End a suspension", on(d.reactivate)},
		{"POST /devices/{id}/revoke", operator.Revoke, "Take all certificates of a device away, for good, and cut its sessions", on(d.revoke)},
		{"POST /devices/{id}/retire", operator.Revoke, "End a device's life: revoke, and keep its id taken", on(d.retire)},
		{"POST /devices/{id}/disconnect", operator.Suspend, "End the live sessions of a device on every node; it may come back", on(d.disconnect)},
		{"POST /devices/{id}/purge", operator.Revoke, "Drop what this node stores for a device", on(d.purge)}, // it cannot be restored
		{"GET /sessions", operator.Read, "List the live sessions of this node", on(live.list)},
		{"POST /sessions/{id}/disconnect", operator.Suspend, "End one live session, on whichever node it is", on(live.disconnect)},
		{"GET /usage", operator.Read, "List what devices use of this node and its message store, those with the most octets first", on(live.usage)},
	}
}

func (s *Server) secretRoutes() []route {
	x := &secrets{s.RA}
	return []route{
		{"GET /devices/{id}/secrets", operator.Read, "List the secrets that a device connects with", on(x.list)},
		// Who makes one can be the device, an active one too.
		{"POST /devices/{id}/secrets", operator.Revoke, "Make a secret for a device to connect with", creates(x.create).upTo(maxSecretBody)},
		{"POST /devices/{id}/secrets/rotate", operator.Revoke, "Make the successor of a device's secret", creates(x.rotate).upTo(maxSecretBody)},
		{"POST /devices/{id}/secrets/{secret}/stop", operator.Revoke, "End a secret for good and cut its sessions", on(x.stop)},
	}
}

func (s *Server) blockRoutes() []route {
	b := &blocks{s.RA.Ledger, s.Now}
	return []route{
		{"GET /blocks", operator.Read, "List the addresses that are blocked, by network", on(b.list)},
		{"POST /blocks", operator.Suspend, "Block an address or a network", creates(b.create)},
		{"DELETE /blocks/{network}", operator.Suspend, "End a block at once", on(b.remove)},
	}
}

func (s *Server) holdRoutes() []route {
	h := &holds{s.RA}
	return []route{
		{"GET /holds", operator.Read, "List the emergency holds of this node", on(h.list)},
		{"POST /holds/{id}/retry", operator.Suspend, "Record the act of an emergency hold now", on(h.retry)},
		{"POST /holds/{id}/drop", operator.Revoke, "End an emergency hold without recording its act", on(h.drop)}, // it lets a device back in
	}
}

func (s *Server) alertRoutes() []route {
	a := &alerts{s.Alerts, s.CA}
	return []route{
		{"GET /alerts", operator.Read, "List alerts, those that opened last first", on(a.list)},
		{"GET /alerts/{id}", operator.Read, "Get an alert with its evidence and what was done", on(a.get)},
		{"GET /alerts/{id}/actions", operator.Read, "List what can be done about an alert, and what would happen now", on(a.actions)},
		{"POST /alerts/{id}/acknowledge", operator.Suspend, "Note that a person works on an alert", on(a.acknowledge)},
		{"POST /alerts/{id}/assign", operator.Suspend, "Assign an alert to an operator", on(a.assign)},
		{"POST /alerts/{id}/comment", operator.Suspend, "Add a comment to an alert", on(a.comment)},
		{"POST /alerts/{id}/snooze", operator.Suspend, "Silence an alert for a time", on(a.snooze)},
		{"POST /alerts/{id}/close", operator.Suspend, "End an alert", on(a.close)},
		{"POST /alerts/{id}/suspend", operator.Suspend, "Put the device of an alert on hold and cut its sessions", on(a.suspend)},
		{"POST /alerts/{id}/reactivate", operator.Suspend, "End the suspension of an alert's device", on(a.reactivate)},
		{"POST /alerts/{id}/revoke", operator.Revoke, "Take all certificates of an alert's device away, for good, and cut its sessions", on(a.revoke)},
		{"POST /alerts/{id}/block", operator.Suspend, "Block the address of an alert", on(a.block)},
		{"GET /alert-rules", operator.Read, "List what can be found, why it matters and what to do", on(a.rules)},
		{"GET /channels", operator.Read, "List the channels that notify of alerts", on(a.channels)},
		{"POST /channels/{name}/test", operator.Configure, "Send a test by a channel", on(a.testChannel)},
	}
}

func (s *Server) accessTokenRoutes() []route {
	a := &accessTokens{s.RA, s.Provisioner}
	return []route{
		{"GET /access-tokens", operator.Read, "List the access tokens that are valid now", on(a.list)},
		// A role without Control gets one that only listens.
		{"POST /access-tokens", operator.Read, "Make a token with which a web application connects to the devices named", creates(a.create)},
		{"POST /access-tokens/{id}/revoke", operator.Suspend, "End a token and its sessions at once", on(a.revoke)},
		{"POST /introductions", operator.Control, "Introduce two devices to each other for a short time", creates(a.introduce)},
	}
}

func (s *Server) certificateRoutes() []route {
	c := &certificates{s.CA, s.RA, s.Now}
	a := &authorities{s.CA, s.Provisioner}
	return []route{
		{"GET /certificates", operator.Read, "List certificates: by serial, or with a state or an end of validity by that end", on(c.list)},
		{"GET /certificates/{serial}", operator.Read, "Get a certificate", on(c.get)},
		{"POST /certificates/{serial}/revoke", operator.Revoke, "Take one certificate away, for good, and cut the sessions that rest on it", on(c.revoke)},
		{"GET /authorities", operator.Read, "List authorities", on(a.list)},
		{"GET /authorities/{id}", operator.Read, "Get an authority", on(a.get)},
		{"POST /authorities", operator.Configure, "Register the CA of a manufacturer", creates(a.register).upTo(maxCABody)},
		{"POST /authorities/code", operator.Configure, "Draw a code that an external CA signs over to be registered", creates(a.code)},
		{"PUT /authorities/{id}/crls", operator.Configure, "Replace the revocation lists of a registered authority", on(a.putCRLs).upTo(maxCABody)},
	}
}

func (s *Server) logRoutes() []route {
	l := &eventLog{s.Events, s.Registry}
	return []route{
		{"GET /events", operator.ReadLog, "List events", on(l.list)},
		{"POST /audit/verify", operator.ReadLog, "Check the hash chain of the whole log", on(l.verify).within(verifyTimeout)},
	}
}

func (s *Server) auditRoutes() []route {
	a := &audits{s.Auditor}
	return []route{
		{"GET /audit/checks", operator.Read, "List the audit checks", on(a.checks)},
		{"GET /audit/runs", operator.ReadLog, "List audits, newest first", on(a.list)},
		{"POST /audit/runs", operator.ReadLog, "Start an audit", creates(a.start)}, // it changes nothing but its own records
		{"GET /audit/runs/{id}", operator.ReadLog, "Get an audit and how far it is", on(a.get)},
		{"POST /audit/runs/{id}/cancel", operator.ReadLog, "End an audit early", on(a.cancel)},
		{"GET /audit/runs/{id}/findings", operator.ReadLog, "List what an audit found", on(a.findings)},
		{"GET /audit/trend", operator.ReadLog, "Compare the last audits, by check", on(a.trend)},
		{"GET /audit/suppressions", operator.ReadLog, "List what is left alone on purpose", on(a.suppressions)},
		{"POST /audit/suppressions", operator.Approve, "Leave findings alone for a time", creates(a.suppress)}, // to accept a risk
		{"DELETE /audit/suppressions/{id}", operator.Approve, "End a suppression at once", on(a.unsuppress)},
	}
}

func (s *Server) setupRoutes() []route {
	f := &fleets{s.Registry, s.Provisioner}
	p := &profiles{s.CA, s.Provisioner}
	o := &operators{s.Operators, s.Provisioner}
	return []route{
		{"GET /fleets", operator.Read, "List fleets by name", on(f.list)},
		{"GET /fleets/{name}", operator.Read, "Get a fleet", on(f.get)},
		{"PUT /fleets/{name}", operator.Configure, "Create or change a fleet", on(f.put)},
		{"PATCH /fleets/{name}/rules", operator.Configure, "Change some of a fleet's rules (RFC 7396)", on(f.patchRules)},
		{"GET /profiles", operator.Read, "List profiles by name", on(p.list)},
		{"GET /profiles/{name}", operator.Read, "Get a profile", on(p.get)},
		{"PUT /profiles/{name}", operator.Configure, "Create or replace a profile, once a sample passes the lints", on(p.put)},
		{"GET /operator-tokens", operator.Operators, "List operator tokens", on(o.list)},
		{"POST /operator-tokens", operator.Operators, "Make an operator token; only this answer holds its secret", creates(o.create)},
		{"POST /operator-tokens/{id}/revoke", operator.Operators, "End an operator token at once", on(o.revoke)},
	}
}

func (s *Server) policyRoutes() []route {
	p := &policyVersions{s.RA.Access.Policies, s.Sessions, s.Log}
	return []route{
		{"GET /policies/{fleet}", operator.Read, "Get the policy in force", on(p.get)},
		{"GET /policies/{fleet}/versions", operator.Read, "List the versions, newest first", on(p.list)},
		{"GET /policies/{fleet}/versions/{version}", operator.Read, "Get a version; 0 is the built-in policy", on(p.version)},
		{"POST /policies/check", operator.Read, "Check a draft and run its tests", on(p.check).upTo(maxPolicyBody)},
		{"POST /policies/explain", operator.Read, "Explain what a client may do, and what decides", on(p.explain).upTo(maxPolicyBody)},
		{"POST /policies/{fleet}/replay", operator.Read, "Try a draft on what was decided of late", on(p.replay).upTo(maxPolicyBody)},
		{"POST /policies/{fleet}/apply", operator.Configure, "Put a draft in force and cut the sessions that lose by it", on(p.apply).upTo(maxPolicyBody)},
		{"POST /policies/{fleet}/rollback", operator.Configure, "Put an older version in force", on(p.rollback)},
	}
}

func (s *Server) credentialRoutes() []route {
	c := &credentials{s.Registry, s.Provisioner, s.Now}
	return []route{
		{"GET /credentials", operator.Read, "List what earns a first certificate, newest first, without secrets", on(c.list)},
		{"GET /credentials/{id}", operator.Read, "Get a credential without its secret", on(c.get)},
		{"POST /credentials/{id}/stop", operator.Revoke, "End a credential at once", on(c.stop)},
		{"GET /tokens", operator.Read, "List enrollment tokens, newest first", on(c.tokens)},
		{"POST /tokens", operator.Register, "Make an enrollment token; only this answer holds its secret", creates(c.createToken).upTo(maxListBody)},
		{"POST /tokens/bulk", operator.Register, "Make a token for each of many devices; all or none", creates(c.createTokens).upTo(maxBulkBody)},
		{"POST /claims", operator.Register, "Issue a claim certificate; only this answer holds its key", creates(c.createClaim).upTo(maxListBody)},
		{"POST /keys", operator.Register, "Register the symmetric key of a device; only this answer holds it", creates(c.createKey)},
		// It makes any device of the fleet.
		{"POST /group-keys", operator.Configure, "Register a key from which those of many devices are derived", creates(c.createGroupKey)},
		{"POST /thumbprints", operator.Register, "Register a device's self-signed certificate", creates(c.createThumbprint)},
		{"POST /tpms", operator.Register, "Register the endorsement key of a TPM", creates(c.createTPM)},
	}
}

func (s *Server) enrollmentRoutes() []route {
	e := &enrollments{s.Registry, s.Provisioner, s.RA}
	return []route{
		{"GET /enrollments", operator.Read, "List the enrollments that wait for an operator, oldest first", on(e.list)},
		{"POST /enrollments/{id}/approve", operator.Approve, "Approve a waiting enrollment, for the device's next try", on(e.approve)},
		{"POST /enrollments/{id}/reject", operator.Approve, "Reject a waiting enrollment", on(e.reject)},
		{"POST /enrollments/explain", operator.Read, "Explain what would become of an enrollment, and why; nothing is issued", on(e.explain).upTo(maxExplainBody)},
	}
}

func (s *Server) factoryRoutes() []route {
	f := &factory{s.RA, s.Registry, s.CA, s.Now, s.Log}
	return []route{
		{
			"POST /factory/{fleet}/certificate", operator.Vouch, "Issue the certificate of a new device, which the operator vouches for",
			on(f.one).upTo(maxFactoryBody),
		},
		{
			"POST /factory/{fleet}/certificates", operator.Vouch, "Issue certificates of many new devices: one request a line, one result a line in the same order, a report last",
			handler{register: f.stream, status: http.StatusOK, limit: runTimeout},
		},
	}
}
