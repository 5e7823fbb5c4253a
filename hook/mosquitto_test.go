package hook_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/config"
)

const (
	dynsecPlugin  = "/usr/lib/x86_64-linux-gnu/mosquitto_dynamic_security.so"
	mosquittoConf = `
per_listener_settings true
pid_file %[1]s/mosquitto.pid
listener %[2]d 127.0.0.1
plugin %[9]s
plugin_opt_config_file %[1]s/dynsec.json
listener %[3]d 127.0.0.1
plugin %[9]s
plugin_opt_config_file %[1]s/dynsec.json
certfile %[4]s
keyfile %[5]s
cafile %[6]s
crlfile %[7]s
require_certificate true
use_identity_as_username true
acl_file %[8]s
`
)

func TestMosquittoIsTold(t *testing.T) {
	need(t, "mosquitto", "mosquitto_ctrl")
	t.Skip("work in progress")
	_ = time.Second
	_ = fmt.Sprint
	_ = os.Args
	_ = exec.Command
	_ = filepath.Join
	_ = api.Act{}
	_ = config.Hook{}
}
