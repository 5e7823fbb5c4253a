package access

// SCRAM checks a client's proof for a secret and returns the server's signature.
func SCRAM(secret string, salt, auth, proof []byte, iterations int) (right bool, signature []byte, err error) {
	k, err := makeSCRAMKeys(secret, salt, iterations)
	return err == nil && k.proves(auth, proof), mac(k.server, auth), err
}

// ParseSCRAM parses a message both as the first and as the final one.
func ParseSCRAM(message string) (user, binding string, first, final error) {
	f, first := parseClientFirst(message)
	g, final := parseClientFinal(message)
	return f.user, g.binding, first, final
}

// Waiting returns how many checks of passwords run or wait.
func (d *Decider) Waiting() int {
	d.Secrets.hasher.mu.Lock()
	defer d.Secrets.hasher.mu.Unlock()
	return d.Secrets.hasher.waiting
}

const (
	MaxQueue     = maxQueue
	MaxOfAddress = maxOfAddress
	MaxGuests    = maxGuests
	MaxSecrets   = maxSecrets
	KeepStopped  = keepStopped
)
