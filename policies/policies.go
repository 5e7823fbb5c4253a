// Package policies keeps what the clients of each fleet may do: every version of its
// policy, the one that is in force, and a sample of what was decided, by which an operator
// learns what a draft would change before it is applied. The language of a policy is
// package policy's.
package policies

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/countersign-iot/countersign/event"
	"github.com/countersign-iot/countersign/lockout"
	"github.com/countersign-iot/countersign/policy"
	"github.com/countersign-iot/countersign/store"
)

// maxInForce bounds the fleets whose policies are kept in memory, each some 50 KiB at
// most. A server with more reads some at each connection.
const maxInForce = 1024

// Store keeps the policies of all fleets.
type Store struct {
	DB     *store.DB
	Now    func() time.Time
	Events *event.Log

	mu      sync.Mutex
	by      lockout.Table[string, InForce]
	changes uint64 // how often something was forgotten
}

// InForce is the policy that decides for a fleet.
type InForce struct {
	Policy  *policy.Policy
	Version int64 // 0: the built-in one
}

// String names it in the reason of a refusal.
func (in InForce) String() string {
	if in.Version == 0 {
		return "built-in policy"
	}
	return fmt.Sprintf("policy (version %d)", in.Version)
}

// Of returns the policy that is in force for a fleet. It does without the database
// only while this process cannot have missed a change.
func (s *Store) Of(ctx context.Context, fleet string) (InForce, error) {
	live := s.Events.Live()
	s.mu.Lock()
	var known InForce
	if in := s.by.Look(fleet); in != nil {
		known = *in
	}
	since := s.changes
	s.mu.Unlock()
	if known.Policy != nil && live {
		return known, nil
	}
	now, err := s.read(ctx, fleet, known)
	if err != nil || !live {
		return now, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if since == s.changes { // else the next call reads what changed
		s.by.Max = maxInForce
		in, _ := s.by.Touch(fleet, s.Now())
		*in = now
	}
	return now, nil
}

// read reads the policy in force from the record. known is not parsed again if it still
// is the one: a version never changes.
func (s *Store) read(ctx context.Context, fleet string, known InForce) (InForce, error) {
	var version int64
	err := s.DB.QueryRow(ctx, `SELECT version FROM policy_version WHERE fleet = $1 ORDER BY version DESC LIMIT 1`, fleet).Scan(&version)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return InForce{Policy: policy.Builtin()}, nil
	case err != nil:
		return InForce{}, fmt.Errorf("couldn't read the policy of fleet %s: %w", fleet, store.Wrap(err))
	case known.Policy != nil && known.Version == version:
		return known, nil
	}
	v, err := s.Version(ctx, fleet, version)
	if err != nil {
		return InForce{}, err
	}
	read, err := policy.Parse([]byte(v.Source))
	if err != nil {
		return InForce{}, fmt.Errorf("couldn't read version %d of the policy of fleet %s: %w", version, fleet, err)
	}
	return InForce{Policy: read, Version: version}, nil
}

// Forget makes the next decision about the fleet read its policy again.
func (s *Store) Forget(fleet string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.changes++
	s.by.Drop(fleet)
}

// ForgetAll makes the next decision about each fleet read its policy again.
func (s *Store) ForgetAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.changes++
	s.by = lockout.Table[string, InForce]{}
}
