package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/goccy/go-yaml"
)

// maxFile bounds the configuration file; a full one is under 8 KiB.
const maxFile = 256 << 10

// Parse reads the YAML form. Unknown and repeated names are errors that say
// where they are; no error shows the text of the file, which may hold a secret
// in the wrong place. An empty text is the zero Config.
func Parse(b []byte) (c Config, err error) {
	if len(b) > maxFile {
		return Config{}, fmt.Errorf("couldn't read configuration: more than %d bytes", maxFile)
	}
	// The library dereferences nil on a few malformed texts, such as a tag before a scalar
	// where a list is due. A broken file must not look like a broken server.
	defer func() {
		if recover() != nil {
			c, err = Config{}, errors.New("couldn't read configuration: malformed YAML")
		}
	}()
	if p := shapeOf(b).problems; len(p) > 0 {
		return Config{}, p
	}
	dec := yaml.NewDecoder(bytes.NewReader(b), yaml.Strict(), yaml.CustomUnmarshaler(readDuration))
	if err = dec.Decode(&c); err != nil && !errors.Is(err, io.EOF) {
		return Config{}, fmt.Errorf("couldn't read configuration: %s", yaml.FormatError(err, false, false))
	}
	if err = dec.Decode(new(any)); !errors.Is(err, io.EOF) {
		return Config{}, errors.New("couldn't read configuration: more than one document")
	}
	return c, nil
}

// readDuration reads a duration as the flags and the rules of a fleet do. b is the
// scalar as YAML has it, with its quotes.
func readDuration(d *time.Duration, b []byte) error {
	var text string
	if err := yaml.Unmarshal(b, &text); err != nil {
		return err
	}
	v, err := countersign.ParseSpan(text)
	*d = v
	return err
}

// Load reads the file at path.
func Load(path string) (Config, error) {
	f, err := os.Open(path) //nolint:gosec // the path is the operator's own
	if err != nil {
		return Config{}, fmt.Errorf("couldn't read configuration: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return Config{}, fmt.Errorf("couldn't read configuration: %w", err)
	}
	c, err := Parse(b)
	if p, ok := errors.AsType[Problems](err); ok {
		for i := range p {
			p[i].File = path
		}
		return Config{}, p
	}
	if err != nil {
		return Config{}, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}
