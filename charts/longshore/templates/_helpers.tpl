{{- define "longshore.selector" -}}
app.kubernetes.io/name: longshore
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "longshore.labels" -}}
{{ include "longshore.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "longshore.name" -}}
{{ eq .Release.Name "longshore" | ternary "longshore-operator" (printf "%s-longshore-operator" .Release.Name) | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- /* What the operator does in the namespaces it watches; nothing else. */ -}}
{{- define "longshore.rules" -}}
- apiGroups: [longshore.dev]
  resources: [ordershardsets]
  verbs: [list, watch, patch] # patch: its finalizer
- apiGroups: [longshore.dev]
  resources: [ordershardsets/status]
  verbs: [patch]
- apiGroups: [""]
  resources: [secrets, configmaps]
  verbs: [get] # those that OrderShardSets name
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end }}
