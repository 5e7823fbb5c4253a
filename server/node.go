package server

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
)

const (
	// nodeFile has the name of this node in the data folder.
	nodeFile = "node"
	// maxNode bounds the name.
	maxNode = 64
)

// messageNode returns the name under which a node keeps its MQTT sessions in a database
// that other nodes may share: configured, or else a random one that the data folder
// keeps. The host's name would not do, since containers change it.
func messageNode(configured, path string) (string, error) {
	if configured != "" {
		return configured, nil
	}
	b, err := os.ReadFile(path) //nolint:gosec // in our data folder
	if errors.Is(err, fs.ErrNotExist) {
		name := strings.ToLower(rand.Text()[:16])
		if err := writeNew(path, name+"\n"); err != nil {
			return "", fmt.Errorf("couldn't keep the name of this node: %w", err)
		}
		return name, nil
	}
	if err != nil {
		return "", fmt.Errorf("couldn't read the name of this node: %w", err)
	}
	name := strings.TrimSpace(string(b))
	if name == "" || len(name) > maxNode || strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return "", fmt.Errorf("%s does not hold the name of a node; write the setting engine.node, or remove the file: the MQTT sessions of this node are lost then", path)
	}
	return name, nil
}

// writeNew makes a file that is not there, with its content on disk before its name is.
func writeNew(path, text string) (err error) {
	tmp := path + ".new"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600) //nolint:gosec // in our data folder
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	err = errors.Join(err, f.Sync(), f.Close())
	if err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	return os.Rename(tmp, path)
}
