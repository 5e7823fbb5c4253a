package broker

// flusher collects the connections whose output has grown, so that each is flushed once
// for many messages. A connection is in one flusher at a time: whoever has it flushes
// it soon. nil collects none.
type flusher struct{ conns []*Conn }

func (f *flusher) touch(c *Conn) {
	if f != nil && c.touched.CompareAndSwap(false, true) {
		f.conns = append(f.conns, c)
	}
}

// flush has the output written.
func (f *flusher) flush() {
	for i, c := range f.conns {
		c.touched.Store(false) // before: what comes from now on is touched again
		c.client.Flush()
		f.conns[i] = nil
	}
	f.conns = f.conns[:0]
}
