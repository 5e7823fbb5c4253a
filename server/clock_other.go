//go:build !linux

package server

// clockStatus cannot ask other systems than Linux.
func clockStatus() (said string, synchronized bool) {
	return "the system does not say whether it is synchronized", true
}
