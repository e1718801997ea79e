// Command kubenode is a Kubernetes control plane in one program: it runs as the
// component it is called by (etcd, kube-apiserver, kubectl), so that the tests
// have real servers where no prebuilt binary can be fetched.
package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/etcdmain"
	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	kubectl "k8s.io/kubectl/pkg/cmd"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
)

func main() {
	component := filepath.Base(os.Args[0])
	if component == "kubenode" && len(os.Args) > 1 {
		component = os.Args[1]
		os.Args = os.Args[1:]
	}
	var command *cobra.Command
	switch component {
	case "etcd":
		etcdmain.Main(os.Args)
		return
	case "kube-apiserver":
		command = apiserver.NewAPIServerCommand()
	case "kubectl":
		command = kubectl.NewDefaultKubectlCommand()
	default:
		fmt.Fprintf(os.Stderr, "unknown component %q: call etcd, kube-apiserver or kubectl\n", component)
		os.Exit(2)
	}
	os.Exit(cli.Run(command))
}
