package detect

import "time"

// dueDevice is when a device is to be looked at.
type dueDevice struct {
	at     time.Time
	device string
}

// dueHeap is a heap of them, one for each device, the earliest first.
type dueHeap []dueDevice

func (h dueHeap) Len() int { return len(h) }
func (h dueHeap) Less(i, j int) bool {
	if h[i].at.Equal(h[j].at) {
		return h[i].device < h[j].device
	}
	return h[i].at.Before(h[j].at)
}
func (h dueHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }

// Push is heap.Interface's.
func (h *dueHeap) Push(v any) {
	if d, ok := v.(dueDevice); ok {
		*h = append(*h, d)
	}
}

// Pop is heap.Interface's.
func (h *dueHeap) Pop() any {
	old := *h
	last := old[len(old)-1]
	*h = old[:len(old)-1]
	return last
}
