{{- define "shop.labels" -}}
app.kubernetes.io/name: shop
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- /* What selects the pods of one component: (list . "postgres"), or of one server's: (list . "postgres" "a"). */ -}}
{{- define "shop.selector" -}}
app.kubernetes.io/name: shop
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- if gt (len .) 2 }}
longshore.dev/shard: {{ index . 2 }}
{{- end }}
{{- end }}

{{- /* The pods of the order service, whoever makes them. */ -}}
{{- define "shop.orderSelector" -}}
{{- if .Values.fleet.enabled }}
longshore.dev/fleet: {{ include "shop.fleetName" . }}
longshore.dev/service: order
{{- else }}
{{- include "shop.selector" (list . "order") }}
{{- end }}
{{- end }}

{{- define "shop.fleetName" -}}{{ .Release.Name | trunc 63 | trimSuffix "-" }}{{- end }}

{{- define "shop.isPlain" -}}{{ eq .Values.postgres.kind "plain" | ternary "yes" "" }}{{- end }}

{{- /* Where a server answers: (list . "a"). The Secret shard-NAME and the certificates say the same. */ -}}
{{- define "shop.host" -}}
{{- $root := index . 0 -}}
shard-{{ index . 1 }}{{ include "shop.isPlain" $root | empty | ternary "-rw" "" }}.{{ $root.Release.Namespace }}.svc
{{- end }}

{{- define "shop.poolerHost" -}}
shard-{{ index . 1 }}-pooler.{{ (index . 0).Release.Namespace }}.svc
{{- end }}

{{- define "shop.poolerPort" -}}{{ include "shop.isPlain" . | empty | ternary 5432 6432 }}{{- end }}

{{- /* Of one pooler: while a new one replaces an old one, there is one more. */ -}}
{{- define "shop.poolerConnections" -}}
{{ max 1 (div .Values.pooler.maxServerConnections (add .Values.pooler.replicas 1)) }}
{{- end }}

{{- define "shop.imagePullSecrets" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- /* What pod security `restricted` asks of a pod and of a container. */ -}}
{{- define "shop.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "shop.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "shop.spread" -}}
- maxSkew: 1
  topologyKey: kubernetes.io/hostname
  whenUnsatisfiable: ScheduleAnyway
  labelSelector:
    matchLabels: {{- include "shop.selector" . | nindent 6 }}
{{- end }}
