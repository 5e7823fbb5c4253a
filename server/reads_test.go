package server_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/countersigntest"
	"github.com/countersign-iot/countersign/event"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/store/storetest"
	"github.com/countersign-iot/countersign/test/kit"
)

const (
	// manyRows are in each table that grows with the fleet, so many more than a page has that
	// a statement which reads all of them, or a tenth, is seen.
	manyRows = 12_000
	// fewRows is what a statement may read: a page of store.MaxPage rows from an index and
	// from its table, on SQLite with the instructions of what it returns.
	fewRows = 11_000
	// fewRowsAlone is the same for a page of api.DefaultLimit.
	fewRowsAlone = 5_000
	// variants bounds how many calls of one text are looked at.
	variants = 40
)

// whole are the statements that read a table of the fleet's size, by a part of their text,
// with the reason.
var whole = map[string]string{
	"SELECT count(*) FROM event WHERE seq > $1 AND seq <= $2": "endRows of the newest events are counted, however many there are",
	"FROM event WHERE seq > $1 AND seq <= $2 AND type IN":     "those that were sealed since the node looked last, a second before",
	"SELECT serial, reason, revoked_at FROM certificate":      "the entries of a revocation list are read once, at the start",
}

// fewAlerts are filters of alerts by two columns, of which one index serves: alerts that are
// not closed are bounded, and the others are of one rule and subject each.
var fewAlerts = regexp.MustCompile(`FROM alert WHERE .*(rule|severity) = .* AND (fleet|rule) = `)

// statements collects what a server has its database run, by text, without repetition.
type statements struct {
	mu sync.Mutex
	by map[string]map[string]store.Statement
}

func (l *statements) add(s store.Statement) {
	verb, _, _ := strings.Cut(strings.TrimSpace(s.Text), " ")
	if verb != "SELECT" && verb != "UPDATE" && verb != "DELETE" || strings.Contains(s.Text, "pg_") {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.by == nil {
		l.by = map[string]map[string]store.Statement{}
	}
	if l.by[s.Text] == nil {
		l.by[s.Text] = map[string]store.Statement{}
	}
	if key := fmt.Sprintf("%v", s.Args); len(l.by[s.Text]) < variants {
		l.by[s.Text][key] = s
	}
}

// TestNoStatementReadsAFleet runs a server on a database in which each table that grows
// with the fleet is much larger than a page, and in which what a filter asks for comes
// last in the order of the list. It calls each GET of the API with each filter and each pair
// of them, as its OpenAPI document has them, and some acts, and then asks the database
// how many rows it reads for each statement that was run, those of the start and of timers too.
func TestNoStatementReadsAFleet(t *testing.T) {
	for name, on := range map[string]countersigntest.Database{"sqlite": countersigntest.SQLite, "postgres": countersigntest.Postgres} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var seen statements
			s := countersigntest.Start(t, countersigntest.Options{Database: on, Statement: seen.add})
			s.Stop()
			where := "sqlite:" + s.Dir + "/countersign.db"
			if s.Faults != nil {
				where = s.Faults.URL()
			}
			fillTables(t, where)
			s.Restart(t)
			kit.Eventually(t, "the log is sealed", func() bool { // until then all of it may be what a list asks for
				oldest, err := event.OldestUnsealed(t.Context(), s.Database())
				return err == nil && oldest.IsZero()
			})
			s.Enroll(t, "newcomer")
			callAll(t, s)
			actOnDevices(t, s)
			kit.Eventually(t, "the device that is to be held is", func() bool {
				d, err := s.Admin.Device(t.Context(), "device-100007")
				return err == nil && d.State == string(countersign.DeviceSuspended)
			})
			s.Stop()
			if len(seen.by) < 100 {
				t.Fatalf("%d statements were seen: the test does not see them", len(seen.by))
			}
			seen.check(t, where)
		})
	}
}

// check asks the database for the rows that each statement reads.
func (l *statements) check(t *testing.T, where string) {
	t.Helper()
	used := map[string]bool{}
	for _, text := range slices.Sorted(maps.Keys(l.by)) {
		for _, s := range l.by[text] {
			limit := fewRowsAlone
			if slices.Contains(s.Args, any(store.MaxPage+1)) || slices.Contains(s.Args, any(store.MaxPage)) {
				limit = fewRows
			}
			rows := storetest.RowsRead(t, where, s)
			if rows <= limit {
				continue
			}
			excused := fewAlerts.MatchString(text)
			for part := range whole {
				if strings.Contains(text, part) {
					excused, used[part] = true, true
				}
			}
			if !excused {
				t.Errorf("%d rows are read, more than %d (in a write: %v), for\n%s\nwith %v", rows, limit, s.InWrite, text, s.Args)
			}
		}
	}
}

// fillTables writes manyRows into each table that grows with the fleet. What is rare in
// a table comes last in the order of its list.
func fillTables(t *testing.T, where string) {
	t.Helper()
	db, err := store.Open(t.Context(), store.Options{URL: where, Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now().UnixMicro()
	numbers := fmt.Sprintf(`WITH RECURSIVE n(i) AS (SELECT 100000 UNION ALL SELECT i + 1 FROM n WHERE i < %d) `, 100000+manyRows-1)
	rare := fmt.Sprintf("i >= %d", 100000+manyRows-10)
	pick := func(common string, others ...string) string { // a text of SQL: one of others where the row is rare
		var b strings.Builder
		b.WriteString("CASE")
		for k, o := range others {
			fmt.Fprintf(&b, " WHEN %s AND i %% %d = %d THEN '%s'", rare, len(others), k, o)
		}
		return b.String() + " ELSE '" + common + "' END"
	}
	finding, err := json.Marshal(countersign.Finding{Rule: "common", Device: "device-100007", Fleet: "default"})
	if err != nil {
		t.Fatal(err)
	}
	fleet, device := pick("default", "rare"), "'device-' || i"
	err = db.Write(t.Context(), func(ctx context.Context, tx *store.Tx) error {
		for _, text := range []string{
			`INSERT INTO fleet (name, issuer, profile, methods, overlap, trust_domain, created_at, updated_at, rules)
				SELECT 'rare', issuer, profile, methods, overlap, trust_domain, created_at, updated_at, rules FROM fleet WHERE name = 'default'`,
			numbers + `INSERT INTO device (id, folded, fleet, state, reason, owner, tags, revoked_at, created_at, updated_at, last_seen, last_addr)
				SELECT ` + device + `, ` + device + `, ` + fleet + `, ` + pick("active", "registered", "pending", "suspended", "retired") + `, '', '', '', 0, 1, 1, 1, '' FROM n`,
			numbers + fmt.Sprintf(`INSERT INTO certificate (serial, issuer, device, fleet, profile, state, held_from, reason, replaced, predecessor, evidence, method,
					key_hash, fingerprint, not_before, not_after, issued_at, used_at, accept_until, revoked_at, shard, der)
				SELECT '4a' || i, (SELECT issuer FROM fleet WHERE name = 'default'), %s, %s, 'device', %s, '', 0, FALSE, '', '', 'token',
					'key' || i, 'print' || i, 1, CASE WHEN i %% 2 = 0 THEN 1 + i ELSE %d + i END, 1, 1, %d + i, 1, 0, (SELECT der FROM certificate WHERE device = '' LIMIT 1) FROM n`,
				device, fleet, pick("revoked", "pending", "superseded", "held", "active"), now+365*24*3600e6, now+3600e6),
			numbers + `INSERT INTO credential (id, kind, lookup, second, fleet, device, label, not_before, expires_at, uses_max, uses, per_minute,
					networks, devices, state, reason, created_by, created_at)
				SELECT 'c' || i, ` + pick("token", "claim", "key", "group", "thumbprint", "tpm") + `, 'lookup' || i, '', ` + fleet + `, ` + device + `, '', 0, 0, 1, 0, 0,
					'null', 'null', 'active', '', '', 900000 - i FROM n`,
			numbers + fmt.Sprintf(`INSERT INTO waiting_enrollment (id, state, device, fleet, method, evidence, key_hash, facts, remote, via, decided_by, note,
					created_at, expires_at, decided_at)
				SELECT 'w' || i, %s, %s, 'default', 'token', '', 'key' || i, '{}', '', '', '', '', i, %d, 0 FROM n`,
				pick("done", "waiting", "approved", "rejected"), device, now+3600e6),
			numbers + `INSERT INTO device_secret (id, device, slot, kind, verifier, state, reason, created_by, created_at, expires_at, used_at)
				SELECT 's' || i, ` + device + `, 'primary', 'password', '', ` + pick("active", "stopped") + `, '', '', 1, 0, 1 FROM n`,
			numbers + fmt.Sprintf(`INSERT INTO alert (id, rule, subject, severity, state, device, fleet, remote, summary, evidence, count, assignee, timeline,
					resolution, snoozed, first_seen, last_seen, changed_at)
				SELECT 'a' || i, %s, 'subject' || i, %s, %s, %s, %s, '', '', '[]', 1, '', '[]', '', %d, %d - i, 1, %d FROM n`,
				pick("common", "rare"), pick("low", "info", "medium", "high", "critical"), pick("closed", "open", "acknowledged", "snoozed"), device, fleet, now+3600e6, now, now),
			numbers + fmt.Sprintf(`INSERT INTO mitigation (id, alert, act, object, fleet, finding, state, attempts, made_at, began_at, next_at)
				SELECT 'm' || i, 'a' || i, 'suspend', '', 'default', '{}', 'done', 1, %d, 1, 1 FROM n`, now),
			// The authority was founded a while ago.
			`UPDATE event SET at = 1`, `UPDATE event_time SET newest = 1`,
			// Devices of the fleet were held within the hour, and another one is to be.
			fmt.Sprintf(`UPDATE mitigation SET began_at = %d WHERE id < 'm100005'`, now),
			fmt.Sprintf(`INSERT INTO mitigation (id, alert, act, object, fleet, finding, state, attempts, made_at, began_at, next_at)
				VALUES ('due', 'a%d', 'suspend', 'device-100007', 'default', '%s', 'waiting', 0, %d, 0, 1)`, 100000+manyRows-10, finding, now),
			numbers + fmt.Sprintf(`INSERT INTO access_token (id, subject, source, fleet, devices, read_only, issued_at, expires_at, revoked_at)
				SELECT 't' || i, %s, 'source' || i, 'default', 'null', FALSE, 1, %d, 0 FROM n`, device, now+3600e6),
			numbers + fmt.Sprintf(`INSERT INTO broker_session (gateway, client, username, device, fleet, issuer, serial, credential, protocol, since, not_after)
				SELECT 'gateway', 'c' || i, '', %s, 'default', '', '', 'c' || i, 'mqtt', %d, 0 FROM n`, device, now),
			numbers + `INSERT INTO serial_block (id, serials, state, opened_at, expires_at) SELECT 'b' || i, '', 'void', 1, 1 FROM n`,
			numbers + fmt.Sprintf(`INSERT INTO event (at, type, actor, device, fleet, issuer, serial, remote, via, code, reason, data)
				SELECT CASE WHEN %s THEN %d ELSE 1700000000000000 + i END, %s, 'system', %s, 'default', '', '', '', '', '', '', '' FROM n`,
				rare, now, pick("session.opened", "fleet.saved"), device),
		} {
			if _, err := tx.Exec(ctx, text); err != nil {
				return fmt.Errorf("%s: %w", text, err)
			}
		}
		if db.Postgres() {
			_, err := tx.Exec(ctx, `ANALYZE`)
			return err
		}
		return nil
	})
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
}

// parameter is one of an operation in an OpenAPI document.
type parameter struct {
	Name   string
	In     string
	Schema struct {
		Enum []string
		Type any
	}
}

// valuesOf are what a parameter is called with where OpenAPI does not list its values: what
// most rows have, what few have, and what none has.
func valuesOf(t *testing.T, path string, p parameter) []string {
	t.Helper()
	if len(p.Schema.Enum) > 0 {
		return p.Schema.Enum
	}
	last := fmt.Sprintf("device-%d", 100000+manyRows-1)
	known := map[string][]string{
		"fleet": {"default", "rare", "none"}, "device": {"device-100000", last, "none"}, "rule": {"common", "rare", "none"},
		"type": {"session.opened", "fleet.saved", "none"}, "name": {"default"}, "check": {"none"}, "version": {"0"}, "serial": {"4a100000"}, "runs": {"5"},
		"id": {"none"}, "issuer": {"none"},
		"since":          {time.Now().Add(-time.Hour).UTC().Format(time.RFC3339), time.Now().Add(time.Hour).UTC().Format(time.RFC3339)},
		"expires_before": {time.Now().Add(72 * time.Hour).UTC().Format(time.RFC3339)},
	}
	if p.Name == "id" && strings.Contains(path, "/devices/") {
		return known["device"]
	}
	values, ok := known[p.Name]
	if !ok && p.In == "query" && strings.Contains(path, "/usage") {
		return nil
	}
	if !ok {
		t.Errorf("%s: no values for the parameter %s: add what most rows have, what few have, and what none has", path, p.Name)
	}
	return values
}

// callAll calls each GET of the API: a list with each filter and each pair of them, the
// following page too.
func callAll(t *testing.T, s *countersigntest.Server) {
	t.Helper()
	var doc struct {
		Paths map[string]map[string]struct{ Parameters []parameter }
	}
	if err := json.Unmarshal(get(t, s, api.Base+"/openapi.json"), &doc); err != nil {
		t.Fatal(err)
	}
	lists := 0
	for path, ops := range doc.Paths {
		op, ok := ops["get"]
		if !ok {
			continue
		}
		paged := slices.ContainsFunc(op.Parameters, func(p parameter) bool { return p.Name == "limit" })
		if paged {
			lists++
		}
		filters := map[string][]string{}
		for _, p := range op.Parameters {
			switch {
			case p.Name == "limit" || p.Name == "after":
			case p.In == "path":
				path = strings.Replace(path, "{"+p.Name+"}", url.PathEscape(valuesOf(t, path, p)[0]), 1)
			case p.In == "query":
				filters[p.Name] = valuesOf(t, path, p)
			}
		}
		for _, q := range choices(filters) {
			page := getPage(t, s, path, q)
			if paged && page.Next != "" {
				q.Set("after", page.Next)
				getPage(t, s, path, q)
			}
		}
	}
	if lists < 15 {
		t.Errorf("%d lists were called: the test does not see them", lists)
	}
}

// choices are no filter, each filter with each of its values, and each two of them.
func choices(filters map[string][]string) []url.Values {
	all := []url.Values{{}}
	names := slices.Sorted(maps.Keys(filters))
	for i, a := range names {
		for _, va := range filters[a] {
			all = append(all, url.Values{a: {va}})
			for _, b := range names[i+1:] {
				for _, vb := range filters[b] {
					all = append(all, url.Values{a: {va}, b: {vb}})
				}
			}
		}
	}
	return all
}

// anyPage is a page of any list.
type anyPage struct {
	Items []any
	Next  string
}

func getPage(t *testing.T, s *countersigntest.Server, path string, q url.Values) (p anyPage) {
	t.Helper()
	_ = json.Unmarshal(get(t, s, path+"?"+q.Encode()), &p) // what is no page has no items
	if p.Items == nil {
		p.Next = ""
	}
	return p
}

// get reads a path of the API; what it names need not be there.
func get(t *testing.T, s *countersigntest.Server, path string) []byte {
	t.Helper()
	return callAPI(t, s, http.MethodGet, path, "")
}

func callAPI(t *testing.T, s *countersigntest.Server, method, path, body string) []byte {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, s.Admin.BaseURL+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	res, err := s.Admin.HTTP.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	if res.StatusCode >= 400 && res.StatusCode != http.StatusNotFound {
		t.Errorf("%s %s: %d %s", method, path, res.StatusCode, text)
	}
	return text
}

// actOnDevices does to devices what operators do.
func actOnDevices(t *testing.T, s *countersigntest.Server) {
	t.Helper()
	on := func(i int) string { return fmt.Sprintf("%s/devices/device-%d/", api.Base, 100000+i) }
	for _, path := range []string{on(1) + "suspend", on(1) + "reactivate", on(2) + "retire", on(3) + "disconnect"} {
		callAPI(t, s, http.MethodPost, path, `{}`)
	}
	callAPI(t, s, http.MethodPost, on(5)+"revoke", `{"reason":"keyCompromise"}`)
	callAPI(t, s, http.MethodPost, api.Base+"/credentials/c100009/stop", `{}`)
	callAPI(t, s, http.MethodPost, api.Base+"/enrollments/w"+fmt.Sprint(100000+manyRows-1)+"/reject", `{}`)
}
