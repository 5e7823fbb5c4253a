package api

// Rules bound a fleet's enrollment beyond the choice of methods. Lengths of time
// are written as Go does: 720h, 30m.
type Rules struct {
	Networks    []string `json:"networks,omitempty" maxItems:"64" doc:"CIDR that first certificates are given to; absent: all."`
	Approval    []string `json:"approval,omitempty" maxItems:"16" doc:"Methods whose enrollments wait for an operator."`
	ApprovalTTL string   `json:"approval_ttl,omitempty" maxLength:"32" doc:"How long they wait; absent: a week."`
	Registered  []string `json:"registered,omitempty" maxItems:"16" doc:"Methods that admit registered devices only."`
	// FactoryProfiles are picked by vouchers.
	FactoryProfiles []string          `json:"factory_profiles,omitempty" maxItems:"16" doc:"Profiles that an operator who vouches may pick besides the fleet's own."`
	Authorities     []string          `json:"authorities,omitempty" maxItems:"64" doc:"Registered authorities whose factory certificates count."`
	ID              *IDRule           `json:"id,omitempty" doc:"Where a factory certificate holds the device id; absent: in its common name."`
	Connect         bool              `json:"connect,omitempty" doc:"A device may connect with its factory certificate."`
	TPMID           bool              `json:"tpm_id,omitempty" doc:"The device id is the chip's registration id."`
	PCRs            map[string]string `json:"pcrs,omitempty" doc:"Hex SHA-256 by register number that a TPM must quote."`
	Recovery        *Recovery         `json:"recovery,omitempty" doc:"Renewal of expired certificates; absent: none."`
	Expression      string            `json:"expression,omitempty" maxLength:"8192" doc:"CEL expression that must be true."`
	Webhook         *Webhook          `json:"webhook,omitempty" doc:"A service that must say yes."`
	Access          *Access           `json:"access,omitempty" doc:"How devices authenticate when they connect; absent: by certificate alone."`
	Budget          *Budget           `json:"budget,omitempty" doc:"What one device may use; absent: the defaults."`
	Usual           *Usual            `json:"usual,omitempty" doc:"When and from where devices enroll; others may, and are noticed. Absent: nothing is noticed."`
	// Respond is left to the server to check: the names are those of GET /alert-rules.
	Respond map[string][]string `json:"respond,omitempty" doc:"What follows on a finding, by rule; * matches the others: note, alert, suspend, revoke, block, webhook, mail, syslog."`
	Audit   *AuditRules         `json:"audit,omitempty" doc:"Thresholds of audit checks."`
}

// Access is what a fleet accepts at the door.
type Access struct {
	Kinds  []string `json:"kinds,omitempty" maxItems:"6" doc:"certificate, password, secret, scram, sas, token; absent: certificate alone."`
	Guests bool     `json:"guests,omitempty" doc:"Admit clients without any credential, as guests."`
}

// Budget is what one device may use. A field that is absent is the default.
type Budget struct {
	Sessions  int   `json:"sessions,omitempty" minimum:"0" doc:"Sessions at once on one node."`
	Publishes int   `json:"publishes,omitempty" minimum:"0" doc:"PUBLISH packets a second on one node."`
	Renewals  int   `json:"renewals,omitempty" minimum:"0" doc:"Certificates an hour."`
	Events    int   `json:"events,omitempty" minimum:"0" doc:"Lines of the log a minute."`
	Unread    int64 `json:"unread,omitempty" minimum:"0" doc:"Octets that wait for one session whose client does not read."`
}

// Usual bounds what is nothing to notice.
type Usual struct {
	Networks []string `json:"networks,omitempty" maxItems:"64" doc:"CIDR; absent: all."`
	Hours    string   `json:"hours,omitempty" maxLength:"5" doc:"UTC, such as 06-20 or, over midnight, 22-04; absent: all."`
}

// AuditRules are thresholds of audit checks; absent: the check's own default.
type AuditRules struct {
	Expiring  string `json:"expiring,omitempty" maxLength:"32" doc:"Before the end of a certificate; 720h, of short-lived ones a fifth of their life."`
	MaxAge    string `json:"max_age,omitempty" maxLength:"32" doc:"Of a certificate; 8760h."`
	SecretAge string `json:"secret_age,omitempty" maxLength:"32" doc:"Of a connection secret or enrollment key; 8760h."`
	Unused    string `json:"unused,omitempty" maxLength:"32" doc:"Of a device that never connected; 720h."`
	Inactive  string `json:"inactive,omitempty" maxLength:"32" doc:"Of a device that was not seen any more; 4320h."`
}

// IDRule says where a factory certificate holds the device id.
type IDRule struct {
	Field  string `json:"field,omitempty" maxLength:"63" doc:"Absent: common_name."`
	Prefix string `json:"prefix,omitempty" maxLength:"128"`
	Suffix string `json:"suffix,omitempty" maxLength:"128"`
}

// Recovery bounds the renewal of expired certificates.
type Recovery struct {
	MaxAge       string   `json:"max_age" maxLength:"32" doc:"After the end of the certificate."`
	MaxTimes     int      `json:"max_times" minimum:"0" doc:"Of one device, ever."`
	Networks     []string `json:"networks,omitempty" maxItems:"64" doc:"CIDR; absent: all."`
	ApproveAfter string   `json:"approve_after,omitempty" maxLength:"32" doc:"Older ones wait for an operator; absent: none do."`
}

// Webhook is a service that is asked before a first certificate.
type Webhook struct {
	URL    string `json:"url" maxLength:"2000" doc:"https, or http on loopback."`
	Secret string `json:"secret" maxLength:"1000" doc:"file: or env: reference of the HMAC key, on the server."`
}
