package broker

import "runtime"

// flusher collects the connections whose output has grown, so that each is flushed once
// for many messages. nil collects none. A connection may be in several: one whose owner
// is late, because its client sent half a packet, must not hold up what others deliver.
type flusher struct{ conns []*Conn }

func (f *flusher) touch(c *Conn) {
	if f == nil || c.toucher.Swap(f) == f {
		return
	}
	if n := len(f.conns); n == 0 || f.conns[n-1] != c {
		f.conns = append(f.conns, c)
	}
}

// flushShared is flush for a reader. Those that can run now and deliver to the same
// connections join its writes. Where there are none it does not wait.
func (f *flusher) flushShared() {
	if len(f.conns) > 0 {
		runtime.Gosched()
		f.flush()
	}
}

// flush has the output written.
func (f *flusher) flush() {
	for i, c := range f.conns {
		c.toucher.CompareAndSwap(f, nil) // before: what comes from now on is touched again
		c.client.Flush()
		f.conns[i] = nil
	}
	f.conns = f.conns[:0]
}
