package audit

import (
	"context"
	"fmt"
	"time"

	"github.com/countersign-iot/countersign/store"
)

// Trend is what one check came to over the last runs, oldest first.
type Trend struct {
	Check  string
	Points []Point
}

// Point is one run in a Trend.
type Point struct {
	Run          string
	At           time.Time
	Status       Status
	NonCompliant int64
	Suppressed   int64
}

// Trend returns each check's results over the last runs, at most maxRuns, by name. Runs
// in which the check did not end are left out.
func (a *Auditor) Trend(ctx context.Context, runs int) (list []Trend, err error) {
	if runs < 1 || runs > maxRuns {
		runs = maxRuns
	}
	type line struct {
		check string
		Point
	}
	all := store.Rows(ctx, a.DB, func(row store.Row) (l line, err error) {
		var at int64
		err = row.Scan(&l.check, &l.Run, &at, &l.Status, &l.NonCompliant, &l.Suppressed)
		l.At = store.Time(at)
		return l, err
	}, `SELECT c.name, r.id, r.started_at, c.status, c.non_compliant, c.suppressed
		FROM audit_check c JOIN audit_run r ON r.id = c.run
		WHERE r.id IN (SELECT id FROM audit_run WHERE state <> 'IN_PROGRESS' ORDER BY id DESC LIMIT $1)
			AND c.status IN ('COMPLETED_COMPLIANT', 'COMPLETED_NON_COMPLIANT')
		ORDER BY c.name, r.id`, runs)
	for l, err := range all {
		if err != nil {
			return nil, fmt.Errorf("read the trend: %w", err)
		}
		if n := len(list); n == 0 || list[n-1].Check != l.check {
			list = append(list, Trend{Check: l.check})
		}
		t := &list[len(list)-1]
		t.Points = append(t.Points, l.Point)
	}
	return list, nil
}
