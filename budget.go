package countersign

// Budget bounds what one device may use, so that one bad device never takes what
// the others need. A zero field means the default, which an honest device does
// not reach; docs/security.md lists what else an identity may cost.
type Budget struct {
	Sessions  int   `json:"sessions,omitempty"`  // live at once on one node
	Publishes int   `json:"publishes,omitempty"` // PUBLISH packets a second, all its sessions on one node together
	Renewals  int   `json:"renewals,omitempty"`  // certificates an hour, renewals and replacements
	Events    int   `json:"events,omitempty"`    // events a minute that it causes by itself
	Unread    int64 `json:"unread,omitempty"`    // octets that wait for one session whose client does not read
}

// The defaults of a Budget.
const (
	DefaultSessions  = 16      // a device with a few programs, and their dead sockets
	DefaultPublishes = 500     // a busy gateway's; a sensor sends one in seconds
	DefaultRenewals  = 20      // a device in a boot loop that makes a new key each time
	DefaultEvents    = 60      // a reconnect every two seconds
	DefaultUnread    = 1 << 20 // several messages of the largest usual size
)

// WithDefaults fills in the defaults.
func (b Budget) WithDefaults() Budget {
	for _, f := range []struct {
		v *int
		d int
	}{{&b.Sessions, DefaultSessions}, {&b.Publishes, DefaultPublishes}, {&b.Renewals, DefaultRenewals}, {&b.Events, DefaultEvents}} {
		if *f.v == 0 {
			*f.v = f.d
		}
	}
	if b.Unread == 0 {
		b.Unread = DefaultUnread
	}
	return b
}

// The names of budgets in events. Beside the fields of Budget, a gateway bounds what
// it stores for a device.
const (
	BudgetSessions      = "sessions"
	BudgetPublishes     = "publishes"
	BudgetRenewals      = "renewals"
	BudgetEvents        = "events"
	BudgetUnread        = "unread"
	BudgetSubscriptions = "subscriptions"
	BudgetRetained      = "retained"
	BudgetQueued        = "queued" // messages that wait for the device
)
