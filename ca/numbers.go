package ca

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/store"
)

// ListNumbers returns the highest number that was given out for each CRL, by
// issuer/shard.
func (c *CA) ListNumbers(ctx context.Context) (numbers map[string]int64, err error) {
	numbers = map[string]int64{}
	for l, err := range store.Rows(ctx, c.DB, func(row store.Row) (l countersign.CRL, err error) {
		err = row.Scan(&l.Issuer, &l.Shard, &l.Number)
		return l, err
	}, `SELECT issuer, shard, number FROM crl`) {
		if err != nil {
			return nil, fmt.Errorf("read the numbers of CRLs: %w", err)
		}
		numbers[l.Issuer+"/"+strconv.Itoa(l.Shard)] = l.Number
	}
	return numbers, nil
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
