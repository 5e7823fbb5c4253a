package mqtt

import (
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"
)

const (
	// natsLogEvery is how often the engine may log the same text, whatever is filled in.
	natsLogEvery = 10 * time.Second
	// natsLogTexts bounds the texts that are told apart; the engine has fewer.
	natsLogTexts = 512
)

// natsLog passes the engine's warnings and errors on. What it notices and traces
// is about itself and stays out.
type natsLog struct {
	log *slog.Logger
	ill func() // called when the store failed for good
	now func() time.Time

	mu   sync.Mutex
	told map[string]*toldText
}

// toldText is a text that was logged.
type toldText struct {
	at    time.Time
	since int // how often it was not logged since
}

// Noticef serves server.Logger.
func (*natsLog) Noticef(string, ...any) {}

// Debugf serves server.Logger.
func (*natsLog) Debugf(string, ...any) {}

// Tracef serves server.Logger.
func (*natsLog) Tracef(string, ...any) {}

// Warnf serves server.Logger.
func (l *natsLog) Warnf(format string, v ...any) {
	if n, ok := l.tell(format); ok {
		l.log.Warn("message engine warns", "text", fmt.Sprintf(format, v...), "not_logged", n)
	}
}

// Errorf serves server.Logger.
func (l *natsLog) Errorf(format string, v ...any) {
	if n, ok := l.tell(format); ok {
		l.log.Error("message engine failed", "text", fmt.Sprintf(format, v...), "not_logged", n)
	}
	if strings.Contains(format, "critical write error") {
		l.ill()
	}
}

// Fatalf serves server.Logger.
func (l *natsLog) Fatalf(format string, v ...any) {
	l.log.Error("message engine failed for good", "text", fmt.Sprintf(format, v...))
}

// tell reports whether a text is to be logged, and how often it was not before. A
// client of the engine can cause an error with each of its messages.
func (l *natsLog) tell(format string) (before int, ok bool) {
	// What names the client is in front of the text that is the same for all.
	if _, text, found := strings.Cut(format, " - "); found {
		format = text
	}
	now := l.now()
	l.mu.Lock()
	defer l.mu.Unlock()
	t := l.told[format]
	if t == nil {
		if l.told == nil || len(l.told) >= natsLogTexts {
			l.told = map[string]*toldText{}
		}
		t = &toldText{}
		l.told[format] = t
	}
	if !t.at.IsZero() && now.Sub(t.at) < natsLogEvery {
		t.since++
		return 0, false
	}
	before, t.at, t.since = t.since, now, 0
	return before, true
}
