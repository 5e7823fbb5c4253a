package lockout

import "context"

// The steps of Run, for tests that do not wait for its tickers.

func (l *Ledger) Flush(ctx context.Context) error { _, err := l.flush(ctx); return err }
func (l *Ledger) Poll(ctx context.Context) error  { return l.poll(ctx) }
func (l *Ledger) Sweep(ctx context.Context) error { return l.sweep(ctx) }

// Held returns how many blocks, ended ones too, and tallies are in memory.
func (l *Ledger) Held() (blocks, tallies int) {
	l.lock()
	defer l.mu.Unlock()
	for _, s := range l.counts() {
		tallies += len(s.by)
	}
	return len(l.blocks.by), tallies
}

const (
	MaxBlocks  = maxBlocks
	MaxTallies = maxTallies
)
