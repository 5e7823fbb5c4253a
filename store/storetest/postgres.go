package storetest

import (
	"context"
	"fmt"
	"net/url"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
)

// maxConnections lets parallel tests have several pools each.
const maxConnections = 400

// shared is the one PostgreSQL of this test process: a start takes seconds. Test packages
// have no hook at their end that a library can use (TestMain is theirs), so the end of the
// process, however it comes, is what stops it and removes its folder, see script.
var shared struct {
	once    sync.Once
	err     error
	cluster *Cluster
	next    atomic.Int64
}

func startShared() (err error) {
	if shared.cluster, err = Make("-c", "fsync=off", "-c", "max_connections="+strconv.Itoa(maxConnections)); err != nil {
		return err
	}
	return shared.cluster.start(shared.cluster.dir)
}

// PostgresURL names a fresh, empty database of a PostgreSQL that this test
// process started. It skips the test when PostgreSQL is not installed, and fails
// it when COUNTERSIGN_REQUIRE_PEERS=1.
func PostgresURL(t testing.TB) string {
	t.Helper()
	shared.once.Do(func() { shared.err = startShared() })
	require(t, shared.err)
	name := fmt.Sprintf("test%d", shared.next.Add(1))
	ctx, cancel := context.WithTimeout(t.Context(), startWait)
	defer cancel()
	// A language that sorts unlike the octets, as most servers have, finds the
	// queries that rely on order.
	if err := shared.cluster.Exec(ctx, "CREATE DATABASE "+name+" TEMPLATE template0 LOCALE_PROVIDER icu ICU_LOCALE 'en-US'"); err != nil {
		t.Fatalf("couldn't create a database: %v", err)
	}
	u, err := url.Parse(shared.cluster.URL())
	if err != nil {
		t.Fatal(err)
	}
	u.Path = "/" + name
	return u.String()
}
