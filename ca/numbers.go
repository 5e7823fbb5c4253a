package ca

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/countersign-iot/countersign/store"
)

// ListNumbers returns the highest number that was given out for each CRL, by
// issuer/shard.
func (c *CA) ListNumbers(ctx context.Context) (numbers map[string]int64, err error) {
	rows, err := c.DB.Query(ctx, `SELECT issuer, shard, number FROM crl`)
	if err != nil {
		return nil, fmt.Errorf("read the numbers of CRLs: %w", err)
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	numbers = map[string]int64{}
	for rows.Next() {
		var issuer string
		var shard, number int64
		if err := rows.Scan(&issuer, &shard, &number); err != nil {
			return nil, fmt.Errorf("read the numbers of CRLs: %w", store.Wrap(err))
		}
		numbers[issuer+"/"+strconv.FormatInt(shard, 10)] = number
	}
	return numbers, store.Wrap(rows.Err())
}

// numberMargin is how far numbers are raised above the highest that is known: some may
// have been given out after it was noted, at most a few in each pause of the publisher.
const numberMargin = 1000

// RaiseNumbers has the next CRLs get numbers above those that were given out, as
// ListNumbers names them: a relying party takes no list with a lower number than it
// knows (RFC 5280, 5.2.3). The lists are due at once.
func (c *CA) RaiseNumbers(ctx context.Context, tx *store.Tx, above map[string]int64) error {
	for list, number := range above {
		issuer, shard, _ := strings.Cut(list, "/")
		n, err := strconv.ParseInt(shard, 10, 64)
		if err != nil {
			return fmt.Errorf("raise the number of CRL %q: %w", list, err)
		}
		_, err = tx.Exec(ctx, `UPDATE crl SET number = $3, this_update = 0, next_update = 0 WHERE issuer = $1 AND shard = $2 AND number < $3`, issuer, n, number+numberMargin)
		if err != nil {
			return fmt.Errorf("raise the number of CRL %s: %w", list, err)
		}
	}
	return nil
}
