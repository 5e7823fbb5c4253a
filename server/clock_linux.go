package server

import "syscall"

// The bits of adjtimex(2) that say how sure the kernel is of its clock.
const (
	staUnsync = 0x0040 // STA_UNSYNC: nothing disciplines it
	timeError = 5      // TIME_ERROR: it is not synchronized
)

// clockStatus returns what the kernel knows about its clock. Where it cannot be asked the
// clock counts as right.
func clockStatus() (said string, synchronized bool) {
	var t syscall.Timex
	state, err := syscall.Adjtimex(&t)
	if err != nil {
		return "the system does not say whether it is synchronized", true
	}
	if state == timeError || t.Status&staUnsync != 0 {
		return "the system says that nothing synchronizes it", false
	}
	return "the system keeps it synchronized", true
}
