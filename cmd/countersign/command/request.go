package command

import (
	"encoding/pem"
	"fmt"

	"github.com/countersign-iot/countersign/pkcs10"
)

// readRequest reads a certification request from a file in any form that a device
// may send, and returns it in PEM, which the API takes.
func readRequest(env *Env, path string) (string, error) {
	b, err := env.readInput(path)
	if err != nil {
		return "", err
	}
	der, err := pkcs10.Decode(b)
	if err == nil {
		_, err = pkcs10.Parse(der)
	}
	if err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})), nil
}

// isRequest reports whether b holds a certification request.
func isRequest(b []byte) bool {
	der, err := pkcs10.Decode(b)
	if err == nil {
		_, err = pkcs10.Parse(der)
	}
	return err == nil
}
