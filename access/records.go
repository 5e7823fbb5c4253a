package access

import (
	"context"
	"fmt"

	"github.com/countersign-iot/countersign/store"
)

// ActiveSecrets lists the secrets of all devices that are not stopped, by id: those
// after the id after; next is empty on the last page.
func ActiveSecrets(ctx context.Context, rd store.Reader, after string) (list []Secret, next string, err error) {
	list, err = store.List(ctx, rd, scanSecret, `SELECT `+secretColumns+` FROM device_secret WHERE id > $1 AND state = 'active' ORDER BY id LIMIT $2`,
		after, store.MaxPage+1)
	if err != nil {
		return nil, "", fmt.Errorf("list secrets: %w", err)
	}
	list, next = store.Page(list, store.MaxPage, func(s *Secret) string { return s.ID })
	return list, next, nil
}

// SecretByID reads one secret, of whichever device; false if there is none.
func SecretByID(ctx context.Context, rd store.Reader, id string) (Secret, bool, error) {
	list, err := store.List(ctx, rd, scanSecret, `SELECT `+secretColumns+` FROM device_secret WHERE id = $1`, id)
	if err != nil {
		return Secret{}, false, fmt.Errorf("read secret %s: %w", id, err)
	}
	if len(list) == 0 {
		return Secret{}, false, nil
	}
	return list[0], true, nil
}

// Holders returns those of the devices that have an active secret.
func Holders(ctx context.Context, rd store.Reader, devices []string) ([]string, error) {
	var q store.Query
	list, err := store.List(ctx, rd, store.Scan[string],
		`SELECT DISTINCT device FROM device_secret WHERE state = 'active' AND device IN `+store.In(&q, devices), q.Args...)
	if err != nil {
		return nil, fmt.Errorf("read which devices have secrets: %w", err)
	}
	return list, nil
}
