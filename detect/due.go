package detect

import "time"

// dueDevice is a device with the time at which its sessions must be checked.
type dueDevice struct {
	at     time.Time
	device string
}

// dueHeap is a heap of dueDevices, the earliest first.
type dueHeap []dueDevice

func (h dueHeap) Len() int { return len(h) }
func (h dueHeap) Less(i, j int) bool {
	if h[i].at.Equal(h[j].at) {
		return h[i].device < h[j].device
	}
	return h[i].at.Before(h[j].at)
}
func (h dueHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }

// Push implements [heap.Interface].
func (h *dueHeap) Push(v any) {
	if d, ok := v.(dueDevice); ok {
		*h = append(*h, d)
	}
}

// Pop implements [heap.Interface].
func (h *dueHeap) Pop() any {
	old := *h
	last := old[len(old)-1]
	*h = old[:len(old)-1]
	return last
}
