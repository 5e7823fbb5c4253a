package attest

// RegistrationIDOf is the registration id of a public area, whatever its key.
func RegistrationIDOf(area []byte) string { return registrationID(&tpmKey{area: area}) }
