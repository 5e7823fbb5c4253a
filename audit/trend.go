package audit

import (
	"context"
	"errors"
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

// Trend gives each check's results over the last runs, at most maxRuns, by name. Runs
// in which the check did not end are left out.
func (a *Auditor) Trend(ctx context.Context, runs int) (list []Trend, err error) {
	if runs < 1 || runs > maxRuns {
		runs = maxRuns
	}
	rows, err := a.DB.Query(ctx, `SELECT c.name, r.id, r.started_at, c.status, c.non_compliant, c.suppressed
		FROM audit_check c JOIN audit_run r ON r.id = c.run
		WHERE r.id IN (SELECT id FROM audit_run WHERE state <> 'IN_PROGRESS' ORDER BY id DESC LIMIT $1)
			AND c.status IN ('COMPLETED_COMPLIANT', 'COMPLETED_NON_COMPLIANT')
		ORDER BY c.name, r.id`, runs)
	if err != nil {
		return nil, fmt.Errorf("read the trend: %w", err)
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		var check string
		var p Point
		var at int64
		if err := rows.Scan(&check, &p.Run, &at, &p.Status, &p.NonCompliant, &p.Suppressed); err != nil {
			return nil, fmt.Errorf("read the trend: %w", store.Wrap(err))
		}
		p.At = store.Time(at)
		if n := len(list); n == 0 || list[n-1].Check != check {
			list = append(list, Trend{Check: check})
		}
		t := &list[len(list)-1]
		t.Points = append(t.Points, p)
	}
	return list, store.Wrap(rows.Err())
}
