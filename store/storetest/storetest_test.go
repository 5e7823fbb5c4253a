package storetest_test

import (
	"bufio"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/countersign-iot/countersign/store/storetest"
)

// killed makes this test binary the process that is killed with its server running.
const killed = "COUNTERSIGN_STORETEST_KILLED"

func TestPostgresURLWaitsToBeKilled(t *testing.T) {
	if os.Getenv(killed) == "" {
		return // it runs only as the child of TestPostgresEndsWithItsProcess
	}
	var dir string
	u := storetest.PostgresURL(t)
	if err := storetest.OpenURL(t, u).QueryRow(t.Context(), `SHOW data_directory`).Scan(&dir); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(os.Stderr, "%s\n%s\n", u, dir)
	select {}
}

func TestPostgresEndsWithItsProcess(t *testing.T) {
	storetest.PostgresURL(t) // skips when it is not installed
	child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestPostgresURLWaitsToBeKilled$")
	child.Env = append(os.Environ(), killed+"=1")
	out, err := child.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	lines.Scan()
	u, err := url.Parse(lines.Text())
	if err != nil || u.Host == "" {
		t.Fatalf("the child's first line: got %q, want a URL", lines.Text())
	}
	lines.Scan()
	dir := lines.Text()
	if _, err := os.Stat(dir); err != nil {
		t.Fatal(err)
	}
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = child.Wait() // "killed"
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		_, statErr := os.Stat(dir)
		conn, dialErr := net.Dial("tcp", u.Host)
		if dialErr == nil {
			_ = conn.Close()
		}
		if os.IsNotExist(statErr) && dialErr != nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after its process was killed: the folder is there: %v, the port answers: %v", statErr == nil, dialErr == nil)
		}
	}
}
